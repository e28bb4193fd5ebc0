"""Export of EfficientNet-Lite0: how close, how fast, and how long the export itself takes, cold and from the cache."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lite0
from edge_runtime.artefact import Artefact, open_artefact, read_raw
from edge_runtime.session import open_session
from export.verify import time_both

TIMED_ROUNDS = 5  # of interleaved runs; the median of the rounds' ratios counts
# "Lite0 to every CPU target": (row, options of `headtail export`)
CPU_TARGETS = (
    ("onnx_fp32", ("--precision", "fp32")),
    ("onnx_u8s8", ("--precision", "int8")),
    ("litert_fp32", ("--precision", "fp32", "--engine", "litert")),
    ("litert_int8", ("--precision", "int8", "--engine", "litert")),
)


def rows() -> list[dict[str, Any]]:
    """The rows of issue "Foundation": sqnr_onnx, int8_agreement, int8_drop, int8_speed, export_cold, export_cached."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _durations(folder)
        fp32 = _exported(folder, "fp32-measured", "--precision", "fp32", "--data", lite0.calibration_folder())
        int8 = _exported(folder, "int8-measured", *_measured_int8())
        litert = _exported(folder, "litert-measured", *_measured_int8(), "--engine", "litert")
        symmetric = _exported(folder, "s8s8-measured", *_measured_int8(), target="jetson-orin-nx-16gb")
        found += _closeness(fp32, int8, litert, symmetric)
        found += [
            _speed("int8_speed", "u8s8 against fp32, onnxruntime", folder / "onnx_fp32", int8, 0.6),
            _speed("int8_speed.litert", "int8 against fp32, LiteRT", folder / "litert_fp32", litert, None),
        ]
    return found


def _measured_int8() -> tuple[str | Path, ...]:
    calibration, data = lite0.calibration_folder(), lite0.evaluation_folder()
    return "--precision", "int8", "--calibration", calibration, "--data", data


def _exported(folder: Path, name: str, *options: str | Path, target: str = "this") -> Artefact:
    lite0.headtail("export", lite0.MODEL, "--target", target, "--out", folder / name, *options)
    return open_artefact(folder / name)


def _durations(folder: Path) -> list[dict[str, Any]]:
    """Wall time of `headtail export` for every CPU target, start of the process included: new cache, then again."""
    calibration = ("--calibration", lite0.calibration_folder())
    seconds: dict[str, list[float]] = {"cold": [], "cached": []}
    before = os.times()
    with _cache(folder / "cache"):
        for times in seconds.values():
            for name, options in CPU_TARGETS:
                start = time.perf_counter()
                _exported(folder, name, *options, *(calibration if "int8" in options else ()))
                times.append(time.perf_counter() - start)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    found = [
        _row("export_cpu", "CPU time of these eight commands, which other load does not change", cpu, "s", None),
        _row(
            "export_cold", "Lite0 to every CPU target, new cache, four commands together", sum(seconds["cold"]), "s", 90
        ),
        _row(
            "export_cached",
            "Lite0 to a CPU target again, the slowest of the four commands",
            max(seconds["cached"]),
            "s",
            2,
        ),
        _row("export_cached.total", "Lite0 to every CPU target again, together", sum(seconds["cached"]), "s", None),
    ]
    for (name, _), cold in zip(CPU_TARGETS, seconds["cold"], strict=True):
        found.append(_row(f"export_cold.{name}", f"Lite0 to {name.replace('_', ' ')}, new cache", cold, "s", None))
    return found


def _closeness(fp32: Artefact, int8: Artefact, litert: Artefact, symmetric: Artefact) -> list[dict[str, Any]]:
    torch_peer = {"peer": "torch, eager", "peer_version": version("torch")}
    ort_peer = {"peer": "fp32 on onnxruntime", "peer_version": version("onnxruntime")}
    litert_peer = {"peer": "fp32 on LiteRT", "peer_version": version("ai-edge-litert")}
    count = int8.manifest.quality.count if int8.manifest.quality else 0
    on = f"{count} pictures"
    found = [
        _row("sqnr_onnx", "Lite0 as fp32 ONNX against torch, 100 pictures", _of(fp32, "sqnr_db"), "dB", 100, ">=")
        | torch_peer
    ]
    bars = {"": (int8, ort_peer, "u8s8", 98, 1.5), ".litert": (litert, litert_peer, "LiteRT int8", None, None)}
    bars[".s8s8"] = (symmetric, ort_peer, "s8s8 for TensorRT, run by onnxruntime", None, None)
    for suffix, (artefact, peer, name, agreement, drop) in bars.items():
        found += [
            _row(
                f"int8_agreement{suffix}",
                f"top-1 of Lite0 {name} equal to fp32, {on}",
                100 * _of(artefact, "agreement"),
                "%",
                agreement,
                ">=",
            )
            | peer,
            _row(
                f"int8_drop{suffix}",
                f"top-1 of fp32 less that of Lite0 {name}, {on}",
                100 * _of(artefact, "drop"),
                "points",
                drop,
            )
            | peer,
            _row(
                f"int8_sqnr{suffix}", f"logits of Lite0 {name} against fp32, {on}", _of(artefact, "sqnr_db"), "dB", None
            )
            | peer,
        ]
    return found


def _of(artefact: Artefact, name: str) -> float:
    quality = artefact.manifest.quality
    return float(getattr(quality, name)) if quality is not None else float("nan")


def _speed(name: str, what: str, fp32_folder: Path, int8: Artefact, bar: float | None) -> dict[str, Any]:
    """The median over rounds of (int8 median / fp32 median), both engines run in turns on a golden input."""
    fp32 = open_artefact(fp32_folder)
    sessions = [open_session(one, threads=1) for one in (fp32, int8)]
    inputs = [[read_raw(one, one.manifest.golden[0].inputs[0], one.manifest.inputs[0])] for one in (fp32, int8)]
    rounds = [time_both(sessions[0], sessions[1], inputs) for _ in range(TIMED_ROUNDS)]
    ratio = float(np.median([this / plain for plain, this in rounds]))
    plain_ms, this_ms = (float(np.median([one[index] for one in rounds])) for index in (0, 1))
    engine = int8.manifest.engine
    return _row(name, f"Lite0 {what}, 1 thread ({this_ms:.2f} / {plain_ms:.2f} ms)", ratio, "x", bar) | {
        "peer": f"fp32 on {engine.name}",
        "peer_version": engine.built,
    }


def _row(name: str, what: str, value: float, unit: str, bar: float | None, direction: str = "<=") -> dict[str, Any]:
    return {
        "id": name,
        "what": what,
        "value": round(value, 4),
        "unit": unit,
        "direction": "info" if bar is None else direction,
        "bar": bar,
    }


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Commands meanwhile find and keep their work in this folder."""
    before = os.environ.get("HEADTAIL_CACHE")
    os.environ["HEADTAIL_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HEADTAIL_CACHE"]
        else:
            os.environ["HEADTAIL_CACHE"] = before
