"""A whole model on this device that answers when the tail cannot: its session, and how long it will take."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.frame_inputs import describe_input, means_alike
from edge_runtime.offload import Estimate, OffloadError
from edge_runtime.session import InputError, Session, check_inputs, open_session
from edge_runtime.wire import FormatError

_GRACE_S = 0.01  # an answer may be so late
LocalInputs = Callable[[], Sequence[np.ndarray]]  # the whole model's own inputs, made when it has to answer


class LocalModel:
    """One session, for callers of any thread.

    Args:
        artefact: A whole model.
        threads: Of the engine; the manifest's number when null.

    Raises:
        EngineError: The engine refuses it.
    """

    def __init__(self, artefact: Artefact, *, threads: int | None = None) -> None:
        self.artefact = artefact
        self._session = open_session(artefact, threads=threads)
        self._run_lock = threading.Lock()
        self._lock = threading.Lock()  # guards the estimate and the callers
        self._callers = 0
        self._estimate = Estimate(_time_once(self._session))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of its outputs."""
        return [spec.shape for spec in self._session.outputs]

    def check_outputs(self, outputs: Sequence[np.ndarray]) -> None:
        """Nothing when somebody else's outputs have the form of its own.

        Raises:
            FormatError: With both.
        """
        found = [output.shape for output in outputs]
        if self.shapes != found:
            raise FormatError(
                f"Wanted outputs {self.shapes} as the local model gives, found {found} of the tail. "
                "Deploy head, tail and fallback of the same network."
            )

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once, and learn how long it takes.

        Raises:
            EngineError: The engine failed, or the inputs do not match.
        """
        return self.answer(lambda: arrays)[0]

    def answer(self, inputs: LocalInputs) -> tuple[list[np.ndarray], float, float]:
        """Make the inputs, run once, and learn how long both take together.

        Returns:
            The outputs, ms for the inputs, and ms for the run, its turn included.

        Raises:
            EngineError: The engine failed, or the inputs do not match.
            EdgeError: As `inputs` says.
        """
        with self._lock:
            self._callers += 1
        try:
            begun = time.perf_counter()
            arrays = inputs()
            made = time.perf_counter()
            with self._run_lock:
                started = time.perf_counter()
                outputs = self._session.run(arrays)
                ended = time.perf_counter()
                with self._lock:
                    self._estimate.add(made - begun + ended - started)
        finally:
            with self._lock:
                self._callers -= 1
        return outputs, 1000 * (made - begun), 1000 * (ended - made)

    def check_given(self, head: Artefact | None, arrays: Sequence[np.ndarray]) -> None:
        """Nothing when what a head takes, or a whole model on the host, is this model's input too.

        Raises:
            OffloadError: With what differs: dtype, shape, layout, quantisation, or mean and std of the pixels.
        """
        own = describe_input(self.artefact.manifest)
        hint = "Pass a function that makes its own input (`local`, with plans `inputs`), or another whole model."
        if head is not None and not means_alike(head.manifest, self.artefact.manifest):
            raise OffloadError(
                f"Wanted {own} for the whole model in {self.artefact.folder}, found the input of the head in {head.folder} "
                f"alone, {describe_input(head.manifest)}. {hint}"
            )
        try:
            check_inputs(self._session.inputs, arrays)
        except InputError as error:
            raise OffloadError(f"{error} This is the whole model in {self.artefact.folder}. {hint}") from error

    def reserve_s(self, time_left_s: float, *, others: int = 0) -> float | None:
        """What to keep back for it; null when it could not end in the time left even if begun now.

        Args:
            time_left_s: Until the deadline.
            others: Requests that may want it at the same moment: it answers one after the other.
        """
        with self._lock:
            if self._estimate.mean_s > time_left_s:
                return None
            wanted_s = self._estimate.upper_s + others * self._estimate.mean_s
            return min(wanted_s, max(self._estimate.mean_s, time_left_s / 2))

    def fits(self, time_left_s: float) -> bool:
        """Whether it may be started now, behind those that wait for it."""
        with self._lock:
            fits = (1 + self._callers) * self._estimate.mean_s <= time_left_s + _GRACE_S
            if not fits:
                self._estimate.relax()
            return fits

    def close(self) -> None:
        """Free the engine."""
        self._session.close()


def local_inputs(
    model: LocalModel | None, head: Artefact | None, arrays: Sequence[np.ndarray], local: LocalInputs | None
) -> LocalInputs | None:
    """How a request's whole model gets its input; null where it cannot answer.

    Args:
        model: The whole model here.
        head: What takes `arrays`; null for a whole model on the host.
        arrays: Given alone, they are for both.
        local: Makes the whole model's own.

    Raises:
        OffloadError: Arrays alone that are no input of the whole model.
    """
    if model is None or (local is None and not arrays):
        return None
    if local is None:
        model.check_given(head, arrays)
    return local or (lambda: arrays)


def _time_once(session: Session) -> float:
    """Seconds of the second run on zeros; the first one warms the engine up."""
    zeros = [np.zeros(spec.shape, spec.dtype) for spec in session.inputs]
    session.run(zeros)
    begun = time.perf_counter()
    session.run(zeros)
    return time.perf_counter() - begun
