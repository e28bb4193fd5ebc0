"""The device's side of the comparison, as a process of its own: classify every picture in every way, print samples.

    python -m orchestrator.demo.device PLAN.json BROKER_URL

One JSON line a sample on standard output. Rounds are interleaved, so that noise meets every strategy alike.
"""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import Preprocessing
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.preprocess import prepare, resize_short_side
from edge_runtime.session import open_session
from orchestrator.demo.strategies import Sample, Strategy

DEADLINE_MS = 20_000.0


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure: strategies, PNG files, rounds over all of them (after one that does not count)."""

    strategies: tuple[Strategy, ...]
    pictures: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Outcome:
    """Logits of one request, with what it cost. Times in ms."""

    logits: np.ndarray
    payload_bytes: int = 0
    device_ms: float = 0.0
    host_ms: float = 0.0
    rest_ms: float = 0.0


def main() -> None:
    """Measure the plan and print the samples."""
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    frames = [_load(Path(path)) for path in plan.pictures]
    runners = [(strategy, _open(strategy, sys.argv[2])) for strategy in plan.strategies]
    for number in range(-1, plan.rounds):
        for index, frame in enumerate(frames):
            for strategy, classify in runners:
                begun = time.perf_counter()
                outcome = classify(frame)
                total_ms = 1000 * (time.perf_counter() - begun)
                if number >= 0:
                    sys.stdout.write(msgspec.json.encode(_sample(strategy, index, outcome, total_ms)).decode() + "\n")
        sys.stdout.flush()


def _sample(strategy: Strategy, picture: int, outcome: Outcome, total_ms: float) -> Sample:
    logits = outcome.logits.reshape(-1).astype(np.float64)
    shares = np.exp(logits - logits.max())
    top1 = int(logits.argmax())
    return Sample(
        strategy=strategy.name,
        picture=picture,
        top1=top1,
        probability=float(shares[top1] / shares.sum()),
        payload_bytes=outcome.payload_bytes,
        device_ms=outcome.device_ms,
        host_ms=outcome.host_ms,
        rest_ms=outcome.rest_ms,
        total_ms=total_ms,
    )


def _open(strategy: Strategy, broker_url: str) -> Callable[[np.ndarray], Outcome]:
    artefact = open_artefact(strategy.artefact)
    if strategy.kind == "local":
        return _local(artefact)
    # Names are free; a request's topic carries this one.
    name = f"demo-{strategy.kind}-{artefact.key[:6]}-{strategy.quality}"
    options = OffloadOptions(deadline_ms=DEADLINE_MS, threads=1)
    if strategy.kind == "cut":
        offloader = Offloader(broker_url, name, head=artefact, options=options)
        offloader.wait_connected()
        return _cut(artefact, offloader)
    offloader = Offloader(broker_url, name, key=artefact.key, options=options)
    offloader.wait_connected()
    return _encoded(artefact, offloader, strategy)


def _local(artefact: Artefact) -> Callable[[np.ndarray], Outcome]:
    session = open_session(artefact, threads=1)

    def classify(frame: np.ndarray) -> Outcome:
        begun = time.perf_counter()
        (logits,) = session.run([prepare(frame, session.inputs[0], _preprocessing(artefact))])
        return Outcome(logits, device_ms=1000 * (time.perf_counter() - begun))

    return classify


def _cut(artefact: Artefact, offloader: Offloader) -> Callable[[np.ndarray], Outcome]:
    def classify(frame: np.ndarray) -> Outcome:
        begun = time.perf_counter()
        tensor = prepare(frame, artefact.manifest.inputs[0], _preprocessing(artefact))
        prepared_ms = 1000 * (time.perf_counter() - begun)
        answer = offloader.infer(tensor)
        times = answer.breakdown
        return Outcome(
            answer.outputs[0],
            answer.bytes_sent,
            prepared_ms + times.head_ms + times.encode_ms + times.serialise_ms,
            times.queue_ms + times.decode_ms + times.tail_ms,
            times.link_ms,
        )

    return classify


def _encoded(artefact: Artefact, offloader: Offloader, strategy: Strategy) -> Callable[[np.ndarray], Outcome]:
    def classify(frame: np.ndarray) -> Outcome:
        begun = time.perf_counter()
        # Resized as the model wants it, so that no pixel is sent which the host would throw away.
        picture = Image.fromarray(resize_short_side(frame, _preprocessing(artefact)))
        stream = io.BytesIO()
        picture.save(stream, strategy.kind.upper(), quality=strategy.quality)
        encoded_ms = 1000 * (time.perf_counter() - begun)
        answer = offloader.infer_image(stream.getvalue())
        times = answer.breakdown
        return Outcome(
            answer.outputs[0],
            answer.bytes_sent,
            encoded_ms + times.encode_ms + times.serialise_ms,
            times.queue_ms + times.decode_ms + times.tail_ms,
            times.link_ms,
        )

    return classify


def _preprocessing(artefact: Artefact) -> Preprocessing:
    preprocessing = artefact.manifest.preprocessing
    if preprocessing is None:
        raise ValueError(f"{artefact.folder} takes no pictures")
    return preprocessing


def _load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    main()
