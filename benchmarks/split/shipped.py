"""The pairs that ship with headtail on all test pictures: equal to the unsplit int8 network, and what their early exits keep back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import data_folder
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.entropy import parse_tables
from export.evaluate import Way, evaluate_exit, evaluate_pair, picture_size, pictures_of
from export.joined import count_equal
from export.pair_runner import picture_input
from orchestrator.demo.pair import STREAM, ZOO
from split.quality import accuracy, calibration_error
from split.training_data import DataOptions, PictureSet, open_pictures

CLASSES = 43
WHERE = "shipped grocery pair, test pictures"
WHERE_STREAM = "shipped grocery pair with one stream for four rates, test pictures"
EQUAL_BAR, LEAVING_BAR, ECE_BAR, MOST_LOST = 100, 30, 5, 0.5


def rows() -> Iterator[dict[str, Any]]:
    """equal, early_exit, exit_ece, and what they are made of; the same of the stream for four rates, and each of these rates."""
    yield from pair_rows(ZOO, "", WHERE)
    yield from pair_rows(STREAM, "stream.", WHERE_STREAM)
    head, tail, data = _opened(STREAM)
    for count in range(1, len(parse_tables(head.path("tables.bin").read_bytes()).layers)):
        way = evaluate_pair(head, tail, data, name="stream", layers=count)
        what = f"accuracy with {count} of its layers at {way.sizes.mean():.0f} B a frame, {WHERE_STREAM}"
        right = accuracy(way.logits, data.labels.numpy())
        yield {"id": f"stream.layers{count}", "what": what, "value": 100 * right, "unit": "%", "direction": "info"}


def pair_rows(folder: Path, prefix: str, where: str) -> Iterator[dict[str, Any]]:
    """equal, early_exit and exit_ece of one pair, and what they are made of."""
    head, tail, data = _opened(folder)
    found = count_equal(head, tail, (picture_input(head, one) for one in pictures_of(data)))
    yield {
        "id": f"{prefix}equal", "what": f"head, codec and tail against the unsplit int8 network, logits bit for bit, {where}: {found.equal} of {found.count}",
        "value": 100 * found.equal / found.count, "unit": "%", "direction": "==", "bar": EQUAL_BAR,
        "peer": "head and tail as one ONNX file", "peer_version": found.engine,
    }  # fmt: skip
    yield from exit_rows(head, tail, data, prefix, where)


def exit_rows(head: Artefact, tail: Artefact, data: PictureSet, prefix: str, where: str) -> Iterator[dict[str, Any]]:
    """The exit with the temperature and threshold that validation pictures chose; unmeasured for a head without one."""
    labels = data.labels.numpy()
    every, leaving = evaluate_exit(head, tail, data, name="pair")
    share = lost = ece = uncalibrated = None
    if leaving is not None:
        share = 100 * (1 - leaving.sent)
        lost = 100 * (accuracy(every.logits, labels) - accuracy(leaving.logits, labels))
        ece, uncalibrated = (100 * one for one in _errors(head, data, labels))
    yield {
        "id": f"{prefix}early_exit", "what": f"pictures that leave early and send nothing, {where}",
        "value": share, "unit": "%", "direction": ">=", "bar": LEAVING_BAR,
    }  # fmt: skip
    yield {
        "id": f"{prefix}early_exit.loss", "what": f"accuracy lost by the exit against the tail alone, {where}",
        "value": lost, "unit": "points", "direction": "<=", "bar": MOST_LOST,
    }  # fmt: skip
    yield {
        "id": f"{prefix}exit_ece", "what": f"expected calibration error of the exit's answers to all pictures, {where}",
        "value": ece, "unit": "%", "direction": "<=", "bar": ECE_BAR,
    }  # fmt: skip
    figures = {
        "uncalibrated": ("calibration error at temperature 1", uncalibrated, "%"),
        "bytes": ("mean bytes of a frame over all pictures, 0 for those that leave", _bytes(leaving), "B"),
        "accuracy": (
            "accuracy with the exit",
            None if leaving is None else 100 * accuracy(leaving.logits, labels),
            "%",
        ),
    }
    for name, (what, value, unit) in figures.items():
        yield {
            "id": f"{prefix}early_exit.{name}",
            "what": f"{what}, {where}",
            "value": value,
            "unit": unit,
            "direction": "info",
        }
    yield {
        "id": f"{prefix or 'shipped.'}accuracy", "what": f"accuracy at {every.sizes.mean():.0f} B a frame, {where}",
        "value": 100 * accuracy(every.logits, labels), "unit": "%", "direction": "info",
    }  # fmt: skip


def _opened(folder: Path) -> tuple[Artefact, Artefact, PictureSet]:
    head, tail = (open_artefact(folder / role) for role in ("head", "tail"))
    options = DataOptions(picture_size(head), label_key="coarse_label", classes=CLASSES)
    return head, tail, open_pictures(data_folder() / "data" / "grocery" / "test.npz", options)


def _errors(head: Artefact, data: PictureSet, labels: np.ndarray) -> tuple[float, float]:
    """Calibration error of the exit with its temperature, and without."""
    from edge_runtime.early_exit import ExitGate
    from edge_runtime.session import open_session

    gate, session = ExitGate(head.manifest), open_session(head, threads=1)
    answers = [gate.divide(session.run([picture_input(head, one)]))[1].logits for one in pictures_of(data)]
    session.close()
    logits, policy = np.concatenate(answers), head.manifest.early_exit
    assert policy
    return calibration_error(logits / policy.temperature, labels), calibration_error(logits, labels)


def _bytes(way: Way | None) -> float | None:
    return None if way is None else float(way.sizes.mean())
