"""The head of a split network for a microcontroller: C, entropy coder and frame writer, proven against TensorFlow Lite Micro."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from device_profiles.errors import MissingDependencyError
from device_profiles.schema import DeviceProfile
from edge_runtime.backends.tflm import open_interpreter
from edge_runtime.entropy import parse_tables
from edge_runtime.manifest import Engine
from export.convert import load_step
from export.cut_check import Arrays, Runner
from export.cut_golden import GoldenRule
from export.cut_source import CutSource
from split.cuts import CutError

STACK_BYTES = 1536  # kept free for the stack: network, then coder


def head_engine() -> Engine:
    """What the manifest of such a head names: its integers are those of TensorFlow Lite Micro."""
    found = _tflm_version()
    return Engine(name="tflite-micro", built=found, tested=(found,))


def check_source(source: CutSource) -> None:
    """Refuse what has no C.

    Raises:
        CutError: Not a .tflite network.
    """
    if source.kind != "tflite":
        raise CutError(
            f"Wanted an int8 .tflite network for a microcontroller head, found {source.path.name}. "
            "Export the model with --target BOARD for a microcontroller first, and split that artefact."
        )


def head_files(
    head: bytes, board: DeviceProfile, *, name: str, cut_id: str, tables: bytes | None = None
) -> dict[str, bytes]:
    """The C project of a head: `headtail export`'s, and `ht_<name>_head_frame`, which writes the whole frame.

    Args:
        head: The head's .tflite file.
        board: Its SRAM holds arena, frame and stack.
        name: Of the whole model.
        cut_id: The route key, 16 hex digits.
        tables: A table set's bytes; none: latents travel as they are.

    Raises:
        EdgeError: As `export.mcu.to_c.build_export`, and `UnsupportedOpError` for a latent that a frame cannot carry.
    """
    load_step("export.mcu.to_c")  # names the missing extra
    from export.mcu.emit_frame import FrameRequest
    from export.mcu.network import lower
    from export.mcu.to_c import McuOptions, build_export, limits_of

    request = FrameRequest(bytes.fromhex(cut_id), parse_tables(tables) if tables is not None else None)
    network = lower(head)
    latent = sum(network.values[port.key].size_bytes for port in network.outputs)
    room = limits_of(board).sram_bytes - STACK_BYTES - latent
    options = McuOptions(name=f"{name}_head", source=f"head of {name}", max_ram_bytes=max(room, 1), frame=request)
    return dict(build_export(head, board, options).files)


def tflm_runner(model: bytes, outputs: int) -> Runner:
    """A function that runs a .tflite file with so many outputs in TensorFlow Lite Micro; arrays in the file's order.

    Raises:
        UnsupportedOpError: Operators that have no C kernel, all of them named.
        MissingDependencyError: The package tflite-micro is not installed.
        EngineError: It refuses the file.
    """
    _tflm_version()
    load_step("export.mcu.to_c")  # names the missing extra
    from export.mcu.ops.registry import check_supported
    from export.mcu.reader import read_model

    check_supported(read_model(model).nodes)
    interpreter = open_interpreter(model, "the network that is cut")

    def run(arrays: Sequence[np.ndarray]) -> Arrays:
        for index, array in enumerate(arrays):
            interpreter.set_input(np.ascontiguousarray(array), index)
        interpreter.invoke()
        return [np.array(interpreter.get_output(index)) for index in range(outputs)]

    return run


def exact_rule() -> GoldenRule:
    """For the latents of a microcontroller head: equal, bit for bit, to TensorFlow Lite Micro's."""
    return GoldenRule("exact", 0.0, f"tflite-micro {_tflm_version()}")


def _tflm_version() -> str:
    try:
        return version("tflite-micro")
    except ImportError as error:
        raise MissingDependencyError(
            "Wanted the reference engine tflite-micro for a microcontroller head, found none. "
            "pip install 'headtail[export-mcu]'."
        ) from error
