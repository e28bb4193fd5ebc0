"""A head on a microcontroller sends the host's own bytes, and the tail answers on them as the whole network does."""

from dataclasses import dataclass

import numpy as np
import pytest

from edge_runtime.entropy import CountOptions, EntropyCodec, count_tables, join_tables
from edge_runtime.wire import CODEC_ENTROPY, Limits, decode_frame, decode_tensors
from export.cut_litert import load_tflite, split_tflite
from export.mcu.errors import ScheduleError
from export.mcu.head import head_files, host_frames
from export.mcu.network import lower
from export.mcu.oracle import Oracle, from_physical
from export.mcu.qemu import prove
from export.mcu.to_c import McuOptions, build_export
from export.mcu.vectors import proof_inputs
from split.cuts import cut_at
from split.patch import InputMode

CUT_ID = bytes(range(8))


@dataclass(frozen=True)
class Board:
    id: str = "test-board"
    sram_bytes: int | None = 64 * 1024
    flash_bytes: int | None = 256 * 1024


def small_network(builder) -> tuple[bytes, str]:
    """A network and the name of the tensor to cut at."""
    net = builder(3)
    source = net.activation((1, 24, 20, 3), 0.04, -5)
    latent = net.depthwise(net.conv(source, 12, (3, 3), (2, 2), activation=3), 1, (3, 3), (2, 2))
    tail = net.dense(net.mean(net.conv(latent, 16, (1, 1)), [1, 2]), 5)
    return net.finish([source], [net.unary("SOFTMAX", tail)]), net.tensors[latent].name


def count(network, oracle, *, variants: int = 1, layers: int = 1):
    """Tables of a head's latents, counted on random inputs."""
    found = [oracle.run(one).outputs for one in proof_inputs(network, count=6)]
    sets = []
    for place, port in enumerate(network.outputs):
        latents = [from_physical(one[place], port.view) for one in found]
        channels = latents[0].shape[-1]
        stops = tuple(channels * (i + 1) // layers for i in range(layers))
        axis = int(latents[0].ndim > 2)  # channels last
        options = CountOptions(channel_axis=axis, layers=stops, variants=variants, block=32 if variants > 1 else 0)
        sets.append(count_tables(latents, options))
    return sets[0] if len(sets) == 1 else join_tables(sets)


@pytest.fixture(scope="session")
def split_model(tflite_builder):
    model, at = small_network(tflite_builder)
    network = load_tflite(model)
    return model, *split_tflite(network, cut_at(network.graph, [at]))


def write(files, folder):
    for relative, content in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)


def export_head(head: bytes, mode: InputMode, folder, **options):
    made = build_export(head, Board(), McuOptions(name="head", input_mode=mode))
    tables = count(made.network, Oracle(head, made.network), **options)
    write(made.files, folder)
    write(head_files(made, tables, CUT_ID), folder)
    return made, tables


@pytest.mark.mcu
@pytest.mark.parametrize(
    ("mode", "options"),
    [(InputMode.PULLED, {}), (InputMode.EXTERNAL, {"layers": 3}), (InputMode.OVERWRITTEN, {"variants": 4})],
    ids=str,
)
def test_the_heads_frame_is_the_hosts_byte_for_byte(split_model, tmp_path, mode, options):
    made, _ = export_head(split_model[1], mode, tmp_path, **options)
    run = prove(tmp_path, machine="mps2-an386", options=["PROOF=proof/proof_ht_head_head.c"])
    assert run.differing == 0
    assert len(run.cases) == 5
    latent = sum(made.network.values[port.key].size_bytes for port in made.network.outputs)
    header = (tmp_path / "src" / "ht_head_head.h").read_text()
    room = int(header.split("FRAME_ROOM ")[1].split()[0])
    assert run.arena_bytes + run.stack_bytes + room <= made.plan.arena_bytes + latent + 1_500
    assert prove(tmp_path, options=["PROOF=proof/proof_ht_head_head.c"]).differing == 0


@pytest.mark.mcu
def test_generated_head_and_tail_equal_the_whole_network(split_model, tmp_path):
    """Frames of the generated C (proven equal to the golden ones) decode to what the tail turns into the same answer."""
    model, head, tail = split_model
    made, tables = export_head(head, InputMode.OVERWRITTEN, tmp_path)
    assert prove(tmp_path, options=["PROOF=proof/proof_ht_head_head.c"]).differing == 0
    whole, after = lower(model), lower(tail)
    whole_oracle, tail_oracle = Oracle(model, whole), Oracle(tail, after)
    for number, inputs in enumerate(proof_inputs(made.network)):
        frame = decode_frame((tmp_path / "golden" / f"{number:02d}_frame.bin").read_bytes(), Limits(1 << 20, 1 << 20))
        latents = decode_tensors(frame, {CODEC_ENTROPY: EntropyCodec(tables)})
        shapes = [after.values[port.key].shape for port in after.inputs]
        answer = tail_oracle.run(tuple(a.reshape(s) for a, s in zip(latents, shapes, strict=True))).outputs[0]
        assert np.array_equal(answer, whole_oracle.run(inputs).outputs[0])


def test_tables_of_another_network_are_refused(split_model, tflite_builder):
    made = build_export(split_model[1], Board(), McuOptions(name="head"))
    other, _ = small_network(tflite_builder)
    whole = lower(other)
    tables = count(whole, Oracle(other, whole))
    with pytest.raises(ScheduleError, match="the head gives"):
        head_files(made, tables, CUT_ID)
    with pytest.raises(ScheduleError, match="8 bytes"):
        head_files(made, tables, b"short")


def test_host_frames_carry_the_cut(split_model):
    made = build_export(split_model[1], Board(), McuOptions(name="head"))
    tables = count(made.network, Oracle(split_model[1], made.network))
    assert all(frame[4:12] == CUT_ID for frame in host_frames(made, tables, CUT_ID))
