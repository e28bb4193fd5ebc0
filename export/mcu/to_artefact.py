"""What the head of a cut network holds for a microcontroller: generated C, entropy coder, frame writer, proof."""

from __future__ import annotations

from device_profiles import DeviceProfile
from edge_runtime.entropy import parse_tables
from export.mcu.head import head_files
from export.mcu.to_c import McuOptions, build_export


def head_c_files(
    model: bytes, *, board: DeviceProfile, name: str, tables: bytes | None, cut_id: str
) -> dict[str, bytes]:
    """Generate a head's C: the network and, with entropy tables, the coder and frame writer.

    Args:
        model: The head's int8 ``.tflite`` file.
        board: Its SRAM and flash are limits.
        name: Of the model.
        tables: The pair's table set, null for raw latents (the C then ends in them, without a frame).
        cut_id: 16 hex digits, what frames carry.

    Raises:
        EdgeError: As ``export.mcu.to_c.build_export``.
    """
    made = build_export(model, board, McuOptions(name=name, source="model.tflite"))
    if tables is None:
        return dict(made.files)
    return dict(made.files) | head_files(made, parse_tables(tables), bytes.fromhex(cut_id))
