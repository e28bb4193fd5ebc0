"""A network that ends in latents becomes firmware's head: run, entropy-code, write the frame of docs/wire.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import edge_runtime
from device_profiles.version import __version__
from edge_runtime.entropy import EntropyCodec
from edge_runtime.entropy.c_tables import table_source
from edge_runtime.entropy.tables import LayerPlan, TableSet
from edge_runtime.manifest import DTYPES
from edge_runtime.wire import CODEC_ENTROPY, CUT_ID_BYTES, FIXED_BYTES, encode_tensors
from export.mcu.c_text import initialiser
from export.mcu.emit_network import make_environment
from export.mcu.errors import ScheduleError
from export.mcu.network import Network, Port
from export.mcu.oracle import from_physical
from export.mcu.to_c import McuExport
from split.patch_plan import InputMode

CODER_FILES = ("ht_entropy.c", "ht_entropy.h", "ht_frame.c", "ht_frame.h")


@dataclass(frozen=True)
class LayerCode:
    """One layer as the C encoder sees it."""

    latent: str  # C expression of the first value's address
    base: str
    channels: int
    positions: int
    channel_step: int
    position_step: int


def head_files(export: McuExport, tables: TableSet, cut_id: bytes) -> dict[str, bytes]:
    """Add the coder, its tables and the head function to an export.

    Args:
        export: The head network's export; its outputs are the latents, int8, batch 1, in the tables' order.
        tables: Counted on these latents.
        cut_id: 8 bytes, from the pair's manifest.

    Returns:
        Further files of the folder: ``src/<prefix>_head.c`` and ``.h``, the tables, coder and frame writer.

    Raises:
        ScheduleError: The tables do not belong to the network's outputs.
    """
    network, code = export.network, export.code
    if len(cut_id) != CUT_ID_BYTES:
        raise ScheduleError(f"wanted a cut id of {CUT_ID_BYTES} bytes, found {len(cut_id)}.")
    check_tables(network, tables)
    layers = [_layer(export, tables, layer) for layer in tables.layers]
    sizes = [network.values[port.key].size_bytes for port in network.outputs]
    payload = sum(sizes) + len(layers)
    header = FIXED_BYTES + 4 * len(layers) + 8 * len(network.outputs)
    blocks = max(_blocks(tables, layer) for layer in layers)
    context: dict[str, object] = {
        "prefix": code.prefix,
        "guard": code.prefix.upper(),
        "version": __version__,
        "mode": code.mode.value,
        "layers": layers,
        "tensors": [_tensor(port) for port in network.outputs],
        "cut_id": ", ".join(f"0x{byte:02x}" for byte in cut_id),
        "scratch": blocks,
        "room": blocks + header + payload,
        "header": header,
        "arguments": {InputMode.PULLED: ", row, user", InputMode.EXTERNAL: ", picture"}.get(code.mode, ""),
        "parameters": {
            InputMode.PULLED: "ht_pull_row row, void *user, ",
            InputMode.EXTERNAL: "const int8_t *picture, ",
        }.get(code.mode, ""),
    }
    environment = make_environment()
    csrc = Path(edge_runtime.__file__).parent / "csrc"
    files = {f"src/{name}": (csrc / name).read_bytes() for name in CODER_FILES}
    for suffix in ("c", "h"):
        text = environment.get_template(f"head.{suffix}.j2").render(context)
        files[f"src/{code.prefix}_head.{suffix}"] = text.encode("ascii")
    files |= _proof(export, tables, cut_id, context)
    files[f"src/{code.prefix}_tables.c"] = table_source(tables, f"{code.prefix}_tables").encode("ascii")
    return files


def host_frames(export: McuExport, tables: TableSet, cut_id: bytes) -> list[bytes]:
    """What the host's own coder writes for the golden latents."""
    codec = EntropyCodec(tables)
    frames = []
    for truth in export.truths:
        ports = zip(export.network.outputs, truth.outputs, strict=True)
        latents = [from_physical(data, port.view) for port, data in ports]
        frames.append(b"".join(encode_tensors(latents, cut_id=cut_id, codec=codec, code=CODEC_ENTROPY)))
    return frames


def _proof(export: McuExport, tables: TableSet, cut_id: bytes, context: dict[str, object]) -> dict[str, bytes]:
    """The proof program of the head and the frames that it must give."""
    frames = host_frames(export, tables, cut_id)
    inputs = [port for port in export.code.ports if port.role == "input"]
    row = inputs[0].width * inputs[0].channels
    template = make_environment().get_template("proof_head.c.j2")
    text = template.render(context | {"inputs": inputs, "row_bytes": row, "cases": len(frames)})
    files = {f"golden/{i:02d}_frame.bin": frame for i, frame in enumerate(frames)}
    return files | {f"proof/proof_{export.code.prefix}_head.c": text.encode("ascii")}


def check_tables(network: Network, tables: TableSet) -> None:
    """Check that tables belong to a network's outputs.

    Raises:
        ScheduleError: Another number of tensors or channels, or a latent that is not int8.
    """
    found = [(port.dtype, network.values[port.key].channels) for port in network.outputs]
    wanted = [("int8", plan.channels) for plan in tables.tensors]
    if found != wanted:
        raise ScheduleError(f"the tables are for latents {wanted} (type, channels), but the head gives {found}.")


def _layer(export: McuExport, tables: TableSet, layer: LayerPlan) -> LayerCode:
    port = export.network.outputs[layer.tensor]
    value = export.network.values[port.key]
    suffix = "" if len(export.network.outputs) == 1 else f"_{layer.tensor}"
    prefix = export.code.prefix
    return LayerCode(
        latent=f"{prefix}_output{suffix}(arena) + {layer.start}",
        base=f"{prefix}_tables_base_{layer.tensor} + {layer.start}",
        channels=layer.stop - layer.start,
        positions=value.height * value.width,
        channel_step=1,
        position_step=value.channels,
    )


def _blocks(tables: TableSet, layer: LayerCode) -> int:
    """Scratch of the encoder: one byte for each block of a layer."""
    return layer.channels * math.ceil(layer.positions / tables.block) if tables.variants > 1 else 0


def _tensor(port: Port) -> str:
    """``ht_frame_tensor`` of a latent: the file's shape without its batch."""
    sizes = port.view.shape[1:] if len(port.view.shape) > 1 else port.view.shape
    return initialiser(DTYPES.index("int8"), len(sizes), initialiser(*sizes))
