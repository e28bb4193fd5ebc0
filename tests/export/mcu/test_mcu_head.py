"""The head of a split network as C: its frames are the host's bytes, and its tail gives the unsplit network's."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from device_profiles.errors import FitError
from edge_runtime.artefact import open_artefact, read_raw
from edge_runtime.codecs import codec_of, codecs_of, encode_first
from edge_runtime.entropy import CountOptions, EntropyCodec, count_tables
from edge_runtime.session import open_session
from edge_runtime.wire import (
    CODEC_ENTROPY,
    Header,
    Limits,
    decode_frame,
    decode_tensors,
    encode_tensors,
    frame_layers,
    limits_of,
    pack_heads,
)
from export.cut_mcu import head_files, tflm_runner
from export.cut_pair import cut_network, list_cuts
from export.cut_source import open_cut_source
from export.mcu.emit_frame import FrameRequest
from export.mcu.errors import ScheduleError, UnsupportedOpError
from export.mcu.network import lower
from export.mcu.oracle import Oracle
from export.mcu.qemu import prove
from export.mcu.to_c import McuOptions, build_export
from orchestrator.cli import run
from split.cuts import CutError, cut_at
from split.patch import InputMode

BOARD = "stm32f746g-disco"
MORE_THAN_LATENT = 1500  # bytes of RAM beside the plan and the latent


@dataclass(frozen=True)
class Board:
    id: str = "test-board"
    sram_bytes: int | None = 64 * 1024
    flash_bytes: int | None = 256 * 1024


@pytest.fixture(scope="module")
def model(tflite_builder, tmp_path_factory):
    """Stem, residual block, depthwise, dense: cuts at one tensor and at two."""
    net = tflite_builder(5)
    source = net.activation((1, 16, 14, 3), 0.04, -5)
    tip = net.conv(source, 8, (3, 3), (2, 2), activation=1)
    side = net.conv(net.depthwise(tip), 8, (1, 1))
    tip = net.binary("ADD", tip, side)
    tip = net.depthwise(tip, 2, (3, 3), (2, 2))
    path = tmp_path_factory.mktemp("whole") / "two-way.tflite"
    path.write_bytes(net.finish([source], [net.dense(net.mean(tip, [1, 2], keep=False), 5)]))
    return path


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "inputs.npz"
    np.savez(path, inputs=np.random.default_rng(3).integers(-40, 40, (8, 16, 14, 3)).astype(np.int8))
    return path


def cut_by_tensors(model, count):
    """The names of the middle one of the cuts at so many tensors."""
    cuts = [cut for cut in list_cuts(model).cuts if len(cut.tensors) == count]
    return cuts[len(cuts) // 2].names


@pytest.fixture(scope="module")
def pairs(model, calibration, tmp_path_factory):
    """(head, tail) by (tensors that cross, codec)."""
    found = {}
    for count in (1, 2):
        for codec in ("raw", "rans"):
            out = tmp_path_factory.mktemp(f"cut-{count}-{codec}")
            tables = calibration if codec == "rans" else None
            found[count, codec] = cut_network(
                model, cut_by_tensors(model, count), out=out, target=BOARD, calibration=tables
            )
    return found


KINDS = [(1, "raw"), (1, "rans"), (2, "raw"), (2, "rans")]


def golden_cases(head):
    """(inputs of the proof program in the file's shape, the frame that C must write) for each case."""
    specs = head.manifest.inputs
    for path in sorted(head.folder.glob("golden/*_frame.bin")):
        number = path.name[:2]
        names = ["input"] if len(specs) == 1 else [f"input_{index}" for index in range(len(specs))]
        inputs = [np.fromfile(path.with_name(f"{number}_{name}.bin"), np.int8) for name in names]
        yield [one.reshape(spec.shape) for one, spec in zip(inputs, specs, strict=True)], path.read_bytes()


def check_pair(model, pair):
    """The frames are the host's, and through them tail equals unsplit network, all in TensorFlow Lite Micro."""
    head, tail = pair
    session, (code, codec) = open_session(head), codec_of(head)
    whole = tflm_runner(model.read_bytes(), len(tail.manifest.outputs))
    rest = tflm_runner(tail.entry.read_bytes(), len(tail.manifest.outputs))
    count = 0
    for inputs, frame in golden_cases(head):
        wanted = encode_tensors(session.run(inputs), cut_id=bytes.fromhex(head.key), codec=codec, code=code)
        assert frame == b"".join(wanted)
        latents = decode_tensors(decode_frame(frame, limits_of(tail.manifest.inputs)), codecs_of(tail))
        for a, b in zip(rest(latents), whole(inputs), strict=True):
            np.testing.assert_array_equal(a, b)
        count += 1
    assert count == 5


def latent_bytes(head):
    return sum(spec.nbytes for spec in head.manifest.outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_the_hosts_and_the_tail_gives_the_unsplit_networks_bytes(model, pairs, kind):
    check_pair(model, pairs[kind])
    assert len(pairs[kind][0].manifest.outputs) == kind[0]


@pytest.mark.parametrize("kind", [(1, "raw"), (2, "rans")])
def test_c_writes_these_frames_here(pairs, kind):
    found = prove(pairs[kind][0].folder)
    assert (found.differing, len(found.cases)) == (0, 5)


@pytest.mark.mcu
@pytest.mark.parametrize("kind", [(1, "rans"), (2, "raw")])
def test_c_writes_these_frames_on_a_cortex_m4_within_its_ram(pairs, kind):
    head = pairs[kind][0]
    found = prove(head.folder, machine="mps2-an386")
    assert (found.differing, len(found.cases)) == (0, 5)
    assert found.ram_bytes <= found.arena_bytes + latent_bytes(head) + MORE_THAN_LATENT
    assert 0 < found.frame_bytes <= found.buffer_bytes


@pytest.mark.shared_data
@pytest.mark.mcu
@pytest.mark.parametrize(
    ("file", "row", "codec"),
    [
        ("vww_96_int8", 11, "rans"),
        ("vww_96_int8", 3, "raw"),
        ("pretrainedResnet_quant", 8, "rans"),
        ("kws_ref_model", 7, "rans"),
    ],
)
def test_known_models_are_equal_on_a_cortex_m4(file, row, codec, tmp_path):
    model = Path(os.environ["HEADTAIL_DATA"], "models", "mlcommons-tiny", f"{file}.tflite")
    cuts = list_cuts(model).cuts
    inputs = tmp_path / "inputs.npz"
    shape = {"vww_96_int8": (96, 96, 3), "pretrainedResnet_quant": (32, 32, 3), "kws_ref_model": (49, 10, 1)}[file]
    np.savez(inputs, inputs=np.random.default_rng(1).integers(-128, 128, (4, *shape)).astype(np.int8))
    tables = inputs if codec == "rans" else None
    pair = cut_network(model, cuts[row].names, out=tmp_path, target=BOARD, calibration=tables)
    check_pair(model, pair)
    found = prove(pair[0].folder, machine="mps2-an386")
    assert found.differing == 0
    assert found.ram_bytes <= found.arena_bytes + latent_bytes(pair[0]) + MORE_THAN_LATENT


@pytest.fixture(scope="module")
def layered(model, tmp_path_factory):
    """The head's file, and tables for two layers with three tables to choose from for each block."""
    head = head_file(model)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(-30 * level, 30 * level, (16, 14, 3)).astype(np.int8) for level in (1, 2, 3, 4)]
    truths = Oracle(head, lower(head)).run_all([(picture,) for picture in pictures])
    latents = [truth.outputs[0][np.newaxis] for truth in truths]
    channels = latents[0].shape[-1]
    options = CountOptions(channel_axis=1, layers=(3, channels), variants=3, block=32)
    return head, count_tables(latents, options)


def write_files(files, folder):
    for relative, content in files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "mode", [InputMode.PULLED, InputMode.EXTERNAL, InputMode.RESIDENT], ids=lambda mode: mode.value
)
def test_layers_and_block_variants_are_equal_in_every_input_mode(layered, mode, tmp_path):
    head, tables = layered
    request = FrameRequest(bytes(range(8)), tables)
    export = build_export(head, Board(), McuOptions(name="layers", input_mode=mode, frame=request))
    assert "scratch" in export.files["src/ht_layers_frame.h"].decode()
    assert prove(write_files(export.files, tmp_path)).differing == 0


def test_c_sends_the_first_layers_alone_as_the_host_does(layered, tmp_path):
    """Each number of layers, 0 and one too many: frames of the latents that the arena holds, which the tail decodes."""
    head, tables = layered
    cut_id, codec, limits = bytes(range(8)), EntropyCodec(tables), Limits(payload_bytes=4096, tensor_bytes=4096)
    export = build_export(head, Board(), McuOptions(name="net", frame=FrameRequest(cut_id, tables)))
    folder = write_files(export.files, tmp_path)
    assert "#define HT_NET_FRAME_LAYERS 2u" in export.files["src/ht_net_frame.h"].decode()
    (folder / "main.c").write_text(
        """#include <stdio.h>
#include "ht_net_frame.h"
int main(int argc, char **argv) {
  ht_head_bytes frame;
  (void)argv;
  if (fread(ht_net_input(ht_net_arena), 1, HT_NET_INPUT_BYTES, stdin) != HT_NET_INPUT_BYTES) return 1;
  if (ht_net_frame_first(ht_net_arena, (uint8_t)(argc - 1), ht_net_frame_buffer, HT_NET_FRAME_BYTES, &frame)) return 2;
  return fwrite(frame.data, 1, frame.size, stdout) == frame.size ? 0 : 3;
}
"""
    )
    sources = sorted(str(path) for path in (folder / "src").glob("*.c"))
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-O1", "-fsanitize=address,undefined"]
    subprocess.run(["cc", *strict, "-Isrc", "main.c", *sources, "-o", "first"], check=True, cwd=folder)
    picture = np.random.default_rng(1).integers(-60, 60, (1, 16, 14, 3)).astype(np.int8)
    latents = [Oracle(head, lower(head)).run_all([(picture[0],)])[0].outputs[0][np.newaxis]]
    sizes = []
    for layers in (0, 1, 2, 3):
        done = subprocess.run(
            [folder / "first", *["-"] * layers], input=picture.tobytes(), capture_output=True, check=True
        )
        pieces = encode_first(codec, latents, layers)
        wanted = frame_layers(Header(CODEC_ENTROPY, cut_id, codec.table_id), pieces, pack_heads(latents), 1)
        assert done.stdout == b"".join(wanted)
        sizes.append(len(done.stdout))
        (found,) = decode_tensors(decode_frame(done.stdout, limits), {CODEC_ENTROPY: codec})
        kept = slice(0, tables.layers[0].stop if layers == 1 else None)
        np.testing.assert_array_equal(found[..., kept], latents[0][..., kept])
    assert sizes[1] < sizes[0] == sizes[2] == sizes[3]


def test_no_buffer_is_overrun(layered, tmp_path):
    """Every capacity up to the largest: a frame inside of the buffer, or no space."""
    head, tables = layered
    export = build_export(head, Board(), McuOptions(name="net", frame=FrameRequest(bytes(8), tables)))
    folder = write_files(export.files, tmp_path)
    (folder / "main.c").write_text(
        """#include <stdlib.h>
#include "ht_net_frame.h"
int main(void) {
  unsigned fitted = 0;
  for (uint32_t room = 0; room <= HT_NET_FRAME_BYTES + 30u; room += room + 8u < HT_NET_FRAME_BYTES ? 7u : 1u) {
    uint8_t *out = malloc(room ? room : 1u);
    ht_head_bytes frame = {0, 0};
    const int status = ht_net_frame(ht_net_arena, out, room, &frame);
    if (status == 0) {
      fitted++;
      if (frame.data < out || frame.data + frame.size != out + room || frame.data[0] != 'H') return 2;
    } else if (status != -HT_NO_SPACE || fitted) {
      return 3;
    }
    free(out);
  }
  return fitted >= 31u ? 0 : 4;
}
"""
    )
    sources = sorted(str(path) for path in (folder / "src").glob("*.c"))
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-O1", "-fsanitize=address,undefined"]
    subprocess.run(["cc", *strict, "-Isrc", "main.c", *sources, "-o", "fit"], check=True, cwd=folder)
    done = subprocess.run([folder / "fit"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_all_c_of_a_head_is_free_of_warnings(pairs, layered, compiler, tmp_path):
    flags = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-O2", "-std=c99"]
    names = ("ht_head.c", "ht_entropy.c", "ht_frame.c", "*_frame.c", "*_tables.c")  # the rest is tested with networks
    head, tables = layered
    stream = build_export(head, Board(), McuOptions(name="stream", frame=FrameRequest(bytes(8), tables)))
    heads = [pairs[kind][0].folder for kind in ((1, "raw"), (2, "rans"))]
    for source in (one / "src" for one in (*heads, write_files(stream.files, tmp_path / "stream"))):
        sources = sorted({str(path) for name in names for path in source.glob(name)})
        subprocess.run([compiler, *flags, "-c", *sources], check=True, cwd=tmp_path)


def test_the_frame_header_serves_cxx17(pairs, tmp_path):
    (tmp_path / "main.cpp").write_text(
        """#include "ht_two_way_head_frame.h"
int main() {
  ht_head_bytes frame;
  return ht_two_way_head_frame(ht_two_way_head_arena, ht_two_way_head_frame_buffer, HT_TWO_WAY_HEAD_FRAME_BYTES, &frame);
}
"""
    )
    include = f"-I{pairs[2, 'rans'][0].folder / 'src'}"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["g++", *flags, include, "-c", "main.cpp"], check=True, cwd=tmp_path)


def test_the_command_writes_a_head_that_verifies_here_and_says_how_to_run_it(model, calibration, tmp_path, capsys):
    at = ",".join(cut_by_tensors(model, 1))
    arguments = ["--at", at, "--target", BOARD, "--codec", "rans", "--calibration", str(calibration)]
    assert run(["split", str(model), *arguments, "--out", str(tmp_path / "cut")]) == 0
    assert "qemu" in capsys.readouterr().out
    head = open_artefact(tmp_path / "cut" / "head")
    assert (head.manifest.engine.name, head.manifest.target) == ("tflite-micro", BOARD)
    assert {"Makefile", "src/ht_two_way_head_frame.c", "src/ht_entropy.c"} <= set(head.manifest.files_by_path)
    assert run(["verify", str(head.folder)]) == 0
    golden = head.manifest.golden[0]
    assert golden.compare == "exact"
    given = [read_raw(head, name, spec) for name, spec in zip(golden.inputs, head.manifest.inputs, strict=True)]
    assert (
        read_raw(head, golden.expected[0], head.manifest.outputs[0]).tobytes()
        == open_session(head).run(given)[0].tobytes()
    )


def test_a_network_without_c_or_a_board_without_room_is_refused_by_name(model, tmp_path):
    with pytest.raises(FitError, match=r"\d+"):
        head_files(head_file(model), Board(id="tiny", sram_bytes=2000), name="net", cut_id="00" * 8)
    head = head_file(model)
    room = build_export(head, Board(), McuOptions(name="net")).report.arena_bytes + 1024
    options = McuOptions(name="net", frame=FrameRequest(bytes(8)))
    with pytest.raises(FitError, match="frame"):  # arena and stack fit, the frame does not
        build_export(head, Board(sram_bytes=room), options)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Relu", ["d"], ["r"]),
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"]),
            helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["rd"]),
            helper.make_node("Sigmoid", ["rd"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 3, 3])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]), helper.make_tensor("z", TensorProto.UINT8, [], [3])],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    cut = list_cuts(path).cuts[0]
    with pytest.raises(CutError, match="tflite"):
        cut_network(path, cut.names, out=tmp_path / "cut", target=BOARD)


def head_file(model):
    source = open_cut_source(model)
    return source.split(cut_at(source.graph, cut_by_tensors(model, 1)))[0]


def test_tables_of_another_network_are_refused(layered):
    head, tables = layered
    other = count_tables([np.zeros((1, 4, 4, tables.tensors[0].channels + 1), np.int8)], CountOptions(channel_axis=1))
    with pytest.raises(ScheduleError, match="Count them"):
        build_export(head, Board(), McuOptions(name="net", frame=FrameRequest(bytes(8), other)))


def test_a_latent_that_a_frame_cannot_carry_is_refused_by_name(tflite_builder):
    net = tflite_builder(2)
    source = net.activation((1, 6, 4, 3), 0.05, 3)
    turned = net.transpose(net.conv(source, 4), (0, 3, 1, 2))
    data = net.finish([source], [turned])
    with pytest.raises(UnsupportedOpError, match="channels last"):
        build_export(data, Board(), McuOptions(name="turned", frame=FrameRequest(bytes(8))))
