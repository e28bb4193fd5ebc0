"""What an artefact for a microcontroller holds beside the int8 file: generated C, build files, proof, report."""

from __future__ import annotations

from device_profiles import DeviceProfile
from edge_runtime.entropy import parse_tables
from export.mcu.head import head_files
from export.mcu.to_c import McuOptions, build_export
from export.request import McuChoices
from split.patch_plan import InputMode


def c_files(model: bytes, *, board: DeviceProfile, name: str, source: str, choices: McuChoices) -> dict[str, bytes]:
    """Generate the folder of C for a board; see ``export.mcu.to_c.build_export`` for the errors.

    Args:
        model: The int8 ``.tflite`` file of the artefact.
        board: Its SRAM and flash are limits.
        name: Of the model.
        source: The file's name, for comments.
        choices: The schedule.
    """
    options = McuOptions(
        name=name,
        source=source,
        schedule=choices.schedule,
        input_mode=InputMode(choices.frame),
        max_ram_bytes=choices.max_ram_bytes,
        max_mac_factor=choices.max_macs_factor,
        optimise=choices.optimise,
        rounding=choices.rounding,
    )
    return dict(build_export(model, board, options).files)


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
    """
    made = build_export(model, board, McuOptions(name=name, source="model.tflite"))
    if tables is None:
        return dict(made.files)
    return dict(made.files) | head_files(made, parse_tables(tables), bytes.fromhex(cut_id))
