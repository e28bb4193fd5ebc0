"""Which steps turn a source into an artefact for a board: one table, decided before anything heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from device_profiles import DeviceProfile
from edge_runtime.manifest import EngineName, Precision
from export.errors import UnsupportedRouteError
from export.source import SourceKind

FileFormat = Literal["onnx", "tflite"]
Scheme = Literal["u8s8", "s8s8"]


@dataclass(frozen=True)
class Route:
    """The way from a source to a file that the board's engine opens."""

    source: SourceKind
    format: FileFormat
    precision: Precision
    engine: EngineName
    scheme: Scheme | None = None  # of an int8 ONNX file

    @property
    def name(self) -> str:
        """A word for the file: fp32, fp16, int8, or the scheme of an int8 ONNX file."""
        return self.scheme or self.precision

    @property
    def file_name(self) -> str:
        """The entry of the artefact."""
        return f"model.{self.format}"


@dataclass(frozen=True)
class _Target:
    """What one engine takes on one kind of board."""

    format: FileFormat
    precisions: tuple[Precision, ...]
    scheme: Scheme | None = None


# (kind of board, engine) -> what it takes; the first engine of a kind is its default.
_TARGETS: dict[str, dict[EngineName, _Target]] = {
    "linux-cpu": {
        "onnxruntime": _Target("onnx", ("fp32", "fp16", "int8"), "u8s8"),
        "litert": _Target("tflite", ("fp32", "int8")),
        "tflite-runtime": _Target("tflite", ("fp32", "int8")),
    },
    "linux-gpu": {
        "tensorrt": _Target("onnx", ("fp32", "fp16", "int8"), "s8s8"),
        "onnxruntime": _Target("onnx", ("fp32", "fp16", "int8"), "u8s8"),
        "litert": _Target("tflite", ("fp32", "int8")),
    },
    # The int8 .tflite is what a microcontroller's interpreter runs; C is generated from it, see `pipeline.finish_file`.
    "mcu": {"tflite-micro": _Target("tflite", ("int8",))},
    "mcu-emulated": {"tflite-micro": _Target("tflite", ("int8",))},
}


def engines_of(board: DeviceProfile) -> tuple[EngineName, ...]:
    """The engines that a board's kind can have; the first is the default."""
    return tuple(_TARGETS[board.kind])


def find_route(
    source: SourceKind,
    board: DeviceProfile,
    *,
    precision: Precision | None = None,
    engine: EngineName | None = None,
    calibrated: bool = False,
) -> Route:
    """Choose the way from a source to a board.

    Args:
        source: Kind of the source.
        board: Where the artefact will run.
        precision: Null chooses: int8 for a microcontroller or with calibration data, fp16 for a GPU, else fp32.
        engine: Null chooses the first of the board's kind; a .tflite source chooses a .tflite engine.
        calibrated: Whether calibration data was given.

    Raises:
        UnsupportedRouteError: The board is unusable, has no such engine or precision, or the source cannot get there.
    """
    if not board.usable:
        raise UnsupportedRouteError(
            f"Wanted a board that can run a model, found {board.id}: {board.notes or 'unusable'}."
        )
    targets = _TARGETS[board.kind]
    engine = engine or _default_engine(source, board)
    if engine not in targets:
        raise UnsupportedRouteError(
            f"Wanted engine {', '.join(targets)} for {board.id} ({board.kind}), found {engine!r}. Leave --engine out for {next(iter(targets))}."
        )
    target = targets[engine]
    precision = precision or _default_precision(board, target, calibrated=calibrated)
    if precision not in target.precisions:
        raise UnsupportedRouteError(
            f"Wanted {' or '.join(target.precisions)} for {engine} on {board.id}, found {precision}. Pass one of these as --precision."
        )
    _check_source(source, target, board, engine)
    scheme = target.scheme if precision == "int8" else None
    return Route(source=source, format=target.format, precision=precision, engine=engine, scheme=scheme)


def _default_engine(source: SourceKind, board: DeviceProfile) -> EngineName:
    targets = _TARGETS[board.kind]
    if source == "tflite":
        return next((name for name, target in targets.items() if target.format == "tflite"), next(iter(targets)))
    return next(iter(targets))


def _default_precision(board: DeviceProfile, target: _Target, *, calibrated: bool) -> Precision:
    if target.precisions == ("int8",) or (calibrated and "int8" in target.precisions):
        return "int8"
    return "fp16" if board.kind == "linux-gpu" and "fp16" in target.precisions else "fp32"


def _check_source(source: SourceKind, target: _Target, board: DeviceProfile, engine: EngineName) -> None:
    if source in ("torch", target.format):
        return
    able = "module:function or a .tflite file" if target.format == "tflite" else "module:function or an .onnx file"
    others = [name for name, other in _TARGETS[board.kind].items() if other.format == source]
    hint = f" This file would work with --engine {others[0]}." if others else ""
    raise UnsupportedRouteError(f"Wanted {able} for {engine} on {board.id}, found a .{source} file.{hint}")
