"""From a frame to an answer: prepare the picture, run head and tail or the whole model, rank the classes."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from device_profiles.errors import EdgeError
from device_profiles.plan_table import PlanTable
from edge_runtime.answer import Answer, Breakdown
from edge_runtime.artefact import Artefact
from edge_runtime.broker_url import MqttError
from edge_runtime.frame_inputs import FrameInputs
from edge_runtime.manifest import Manifest, TensorSpec
from edge_runtime.messages import Ranked
from edge_runtime.offload import Counters
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.planned import PlannedOffloader
from edge_runtime.preprocess import ImageError, encode_picture
from edge_runtime.session import Session, open_session
from edge_runtime.sources import Frame

log = logging.getLogger(__name__)
_MAX_LABEL_BYTES = 1 << 20


class LabelError(EdgeError):
    """An artefact's class names cannot be read."""


class Outcome(msgspec.Struct, frozen=True):
    """An answer with the classes that it ranks highest."""

    answer: Answer
    top: tuple[Ranked, ...]
    agrees: bool | None = None  # the tail and the whole model here, where both answered


@dataclass(frozen=True)
class PlanChoice:
    """A plan table and the heads that it may use; whole models of the host besides, see `PlannedOffloader`."""

    table: PlanTable
    heads: tuple[Artefact, ...] = ()


class Pipeline:
    """What a device runs: a head with its tail on the host, a whole model here, or the first backed by the second.

    Each artefact gets the input that its own manifest describes; the whole model's is made only when it has to answer.

    Args:
        broker_url: For the head's requests.
        device: This device's name.
        head: Null runs the whole model alone.
        whole: Null leaves the head without a fallback; so does a whole model of another network.
        options: Of the offloader; its deadline is that of every frame.
        plan: Follow this table with these heads and the whole model instead of the head alone.

    Raises:
        EdgeError: As the engines say.
    """

    def __init__(
        self, broker_url: str, device: str, *, head: Artefact | None, whole: Artefact | None, options: OffloadOptions,
        plan: "PlanChoice | None" = None,
    ) -> None:  # fmt: skip
        first = head or whole
        if first is None:
            raise ValueError("a pipeline needs a head or a whole model")
        self._first, self._whole = first, whole
        self._offloader: Offloader | PlannedOffloader | None = None
        self._session: Session | None = None
        self._counters = Counters()
        self._shadow_share = options.shadow_share
        self._tracer = options.tracer
        fallback = whole if head is None or whole is None or backs(head.manifest, whole) else None
        if plan is not None:
            heads = [*plan.heads, *([] if head is None else [head])]
            self._offloader = PlannedOffloader(
                broker_url, device, plan.table, heads=heads, whole=whole, options=options
            )
        elif head is not None:
            self._offloader = Offloader(broker_url, device, head=head, fallback=fallback, options=options)
        elif whole is not None:
            self._session = open_session(whole, threads=options.threads)
        self._outputs = fallback.manifest.outputs if fallback is not None else ()
        self._labels = next((found for found in map(read_labels, (head, fallback)) if found), ())
        kinds = [one.manifest.postprocessing.kind for one in (head, fallback) if one is not None]
        self._softmax = "softmax-top-k" in kinds

    def run(self, frame: Frame) -> Outcome:
        """Answer one frame.

        Raises:
            ImageError: The picture cannot be decoded or prepared.
            OffloadError: No answer in time and no fallback.
            EngineError: The engine failed.
        """
        begun = time.perf_counter()
        inputs = FrameInputs(frame)
        if not isinstance(self._offloader, PlannedOffloader):
            inputs.of(self._first)  # its time is no part of the deadline
        prepared = time.perf_counter()
        answer = self._infer(frame, inputs)
        answered = time.perf_counter()
        top = rank(answer.outputs, self._outputs, self._labels, softmax=self._softmax)
        ended = time.perf_counter()
        breakdown = msgspec.structs.replace(
            answer.breakdown,
            preprocess_ms=answer.breakdown.preprocess_ms + 1000 * (prepared - begun),
            postprocess_ms=answer.breakdown.postprocess_ms + 1000 * (ended - answered),
            total_ms=1000 * (ended - begun),
        )
        answer = msgspec.structs.replace(answer, breakdown=breakdown)
        if answer.trace_id is not None and self._tracer is not None:
            self._tracer.finished(answer)
        return Outcome(answer, top, self._compare(answer, inputs))

    def _infer(self, frame: Frame, inputs: FrameInputs) -> Answer:
        whole = self._whole
        if self._offloader is None:
            return self._run_here(inputs.of(self._first))
        if isinstance(self._offloader, Offloader):
            local = None if whole is None else lambda: inputs.of(whole)
            return self._offloader.infer(*inputs.of(self._first), local=local)
        return self._offloader.infer(
            inputs=inputs.of,
            picture=lambda form, preprocessing: encode_picture(frame.array(), preprocessing, form),
        )

    @property
    def counters(self) -> Counters:
        """How frames ended so far."""
        return self._offloader.counters if self._offloader else self._counters

    def wait_connected(self, timeout_s: float) -> None:
        """Wait for the way to the tail, where there is one; without it, frames are answered here or fail."""
        if self._offloader is not None:
            try:
                self._offloader.wait_connected(timeout_s)
            except MqttError as error:
                log.warning("%s", error)

    def close(self) -> None:
        """Disconnect and free the engines."""
        if self._offloader is not None:
            self._offloader.close()
        if self._session is not None:
            self._session.close()

    def _compare(self, answer: Answer, inputs: FrameInputs) -> bool | None:
        """Whether the whole model here gives the tail's first class; asked for a share of the answers, after they were given."""
        local = self._offloader.local if self._offloader is not None else None
        if local is None or answer.source != "remote" or random.random() >= self._shadow_share:
            return None
        try:
            wanted = local.run(inputs.of(local.artefact))[0]
        except ImageError as error:  # too small for the whole model's crop, say: the answer stands
            log.warning("no comparison with the whole model: %s", error)
            return None
        return bool(np.argmax(wanted) == np.argmax(answer.outputs[0]))

    def _run_here(self, arrays: Sequence[np.ndarray]) -> Answer:
        if self._session is None:
            raise ValueError("no session")
        begun = time.perf_counter()
        outputs = self._session.run(arrays)
        local_ms = 1000 * (time.perf_counter() - begun)
        self._counters.local += 1
        return Answer(outputs, "local", Breakdown(local_ms=local_ms, total_ms=local_ms), 0, "no head is deployed")


def backs(head: Manifest, whole: Artefact) -> bool:
    """Whether a whole model may answer in place of the head and its tail: named by the head, or the same network."""
    if head.fallback is not None:
        return head.fallback == whole.id
    return head.model == whole.manifest.model


def read_labels(artefact: Artefact | None) -> tuple[str, ...]:
    """The artefact's class names, if it has any.

    Raises:
        LabelError: The file is not UTF-8 text.
    """
    if artefact is None or artefact.manifest.postprocessing.labels is None:
        return ()
    path = artefact.path(artefact.manifest.postprocessing.labels)
    try:
        with path.open(encoding="utf-8") as stream:
            return tuple(stream.read(_MAX_LABEL_BYTES).splitlines())
    except UnicodeDecodeError as error:
        raise LabelError(f"Wanted class names in UTF-8, found: {error}, in {path}. Export it again.") from error


def rank(
    outputs: Sequence[np.ndarray], specs: Sequence[TensorSpec], labels: Sequence[str], *, softmax: bool, count: int = 5
) -> tuple[Ranked, ...]:
    """The classes with the highest scores in the first output.

    Args:
        outputs: Of the model; ranked only when the first is (1, classes) with at least two classes.
        specs: Of the outputs when they are known here; stored integers become real numbers with them.
        labels: Class names, or none.
        softmax: Make probabilities of real numbers; integers without known quantisation stay what they are.
        count: How many.
    """
    if not outputs or outputs[0].size < 2 or outputs[0].size != outputs[0].shape[-1]:
        return ()
    scores = outputs[0].reshape(-1).astype(np.float64)
    real = outputs[0].dtype.kind == "f"
    if not real and specs and specs[0].quantisation is not None and specs[0].dtype == outputs[0].dtype.name:
        scores = (scores - specs[0].quantisation.zero_point) * specs[0].quantisation.scale
        real = True
    if real and softmax:
        with np.errstate(invalid="ignore"):  # a network that overflows: nothing is ranked
            powers = np.exp(scores - scores.max())
            scores = powers / powers.sum()
    best = [i for i in np.argsort(-scores, kind="stable")[:count] if np.isfinite(scores[i])]  # JSON has no NaN
    return tuple(
        Ranked(index=int(i), score=float(scores[i]), label=labels[i][:500] if i < len(labels) else None) for i in best
    )
