import json
import re

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from device_profiles.load import this_board_id
from edge_runtime.artefact import open_artefact, read_raw, write_artefact
from edge_runtime.manifest import (
    Engine,
    Licence,
    Manifest,
    ModelInfo,
    Postprocessing,
    Preprocessing,
    TensorSpec,
    Tool,
    make_cut_id,
)
from edge_runtime.session import open_session
from edge_runtime.wire import decode_frame, encode_tensors, limits_of
from export.commands.split import split
from export.cut_check import CutEqualityError
from export.cut_pair import PairOptions, cut_network, write_pair
from export.cut_source import CutSourceError, open_cut_source
from export.picture_sizes import measure_picture, picture_input
from orchestrator.cli import run
from split.cuts import CutError, find_cuts

SHAPE = (1, 3, 32, 32)


def _constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _pair(name):
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]),
    ]


def _model():
    """A picture, a convolution with a skip, and two classes."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["w_d"]),
        *_pair("x"),
        helper.make_node("Conv", ["x_d", "w_d"], ["c"], pads=[1, 1, 1, 1]),
        *_pair("c"),
        helper.make_node("Relu", ["c_d"], ["r"]),
        *_pair("r"),
        helper.make_node("Add", ["c_d", "r_d"], ["sum"]),
        *_pair("sum"),
        helper.make_node("GlobalAveragePool", ["sum_d"], ["p"]),
        *_pair("p"),
        helper.make_node("Flatten", ["p_d"], ["y"]),
    ]
    weights = [
        _constant("w", rng.integers(-127, 128, (2, 3, 3, 3)), np.int8),
        _constant("ws", 0.01),
        _constant("wz", 0, np.int8),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [_constant("s", 0.05), _constant("z", 120, np.uint8), *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "bare.onnx"
    onnx.save(_model(), path)
    return path


@pytest.fixture
def whole(tmp_path):
    """An artefact as `headtail export` writes it, with labels and a licence text."""
    x = np.random.default_rng(3).normal(size=SHAPE).astype("<f4")
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="two-class", source_sha256="ab" * 32),
        role="whole",
        target="rpi-4b",
        precision="int8",
        engine=Engine(name="onnxruntime", built="1.32.0"),
        entry="model.onnx",
        inputs=(
            TensorSpec(name="image", engine_name="x", dtype="float32", shape=SHAPE, layout="nchw", semantic="image"),
        ),
        outputs=(TensorSpec(name="logits", engine_name="y", dtype="float32", shape=(1, 2), semantic="logits"),),
        files=(),
        preprocessing=Preprocessing(resize_short=32, crop=(32, 32), mean=(127.0,) * 3, std=(128.0,) * 3),
        postprocessing=Postprocessing(kind="softmax-top-k", labels="labels.txt"),
        licences=(Licence(subject="weights", spdx="Apache-2.0", attribution="a test"),),
    )
    files = {
        "model.onnx": _model().SerializeToString(),
        "labels.txt": b"cat\ndog\n",
        "LICENSES/weights.txt": b"text",
        "golden/x.bin": x.tobytes(),
    }
    return write_artefact(tmp_path / "whole", manifest, files).folder


def _json(capsys):
    return json.loads(capsys.readouterr().out)


def test_the_list_sets_every_cut_against_jpeg_and_webp(whole, capsys):
    split(whole, show=True, json=True)
    report = _json(capsys)
    picture = report["picture"]
    assert (picture["height"], picture["width"], picture["quality"]) == (32, 32, 75)
    assert 0 < picture["webp_bytes"] < picture["jpeg_bytes"] < 32 * 32 * 3
    assert report["complete"]
    assert [[tensor["name"] for tensor in cut["tensors"]] for cut in report["cuts"]] == [
        ["x_q"], ["c_q"], ["c_q", "r_q"], ["sum_q"], ["p_q"],
    ]  # fmt: skip
    assert [cut["head_macs"] for cut in report["cuts"]] == [0] + [32 * 32 * 2 * 27] * 4
    last = report["cuts"][-1]
    assert (last["payload_bytes"], last["wire_bytes"]) == (2, 2 + 64)
    assert last["payload_of_jpeg"] == round(2 / picture["jpeg_bytes"], 4)


def test_the_table_names_sizes_and_rows(whole, capsys):
    assert run(["split", str(whole), "--list"]) == 0
    text = capsys.readouterr().out
    for part in ("c_q", "JPEG", "WebP", "head MACs", "payload", "2048 B", "cat.webp at 32 x 32"):
        assert part in text


def test_a_picture_of_ones_own_is_measured(whole, tmp_path, capsys):
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "red.png")
    split(whole, show=True, image=tmp_path / "red.png", json=True)
    red = _json(capsys)["picture"]
    split(whole, show=True, json=True)
    assert red["name"] == "red.png"
    assert red["jpeg_bytes"] < _json(capsys)["picture"]["jpeg_bytes"]


def test_the_pair_equals_the_whole_through_the_wire(whole, tmp_path, capsys):
    split(whole, at="c_q,r_q", out=tmp_path / "cut", fallback=whole, json=True)
    report = _json(capsys)
    head, tail, source = (open_artefact(path) for path in (tmp_path / "cut" / "head", tmp_path / "cut" / "tail", whole))
    assert head.key == report["cut_id"]
    assert tail.manifest.cut.accepts == (head.key,)
    sessions = [open_session(one) for one in (head, tail, source)]
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        latents = sessions[0].run([x])
        frame = b"".join(bytes(part) for part in encode_tensors(latents, cut_id=bytes.fromhex(head.key)))
        received = decode_frame(frame, limits_of(tail.manifest.inputs))
        assert len(frame) == report["cut"]["wire_bytes"] - 24
        assert sum(one.nbytes for one in received.tensors) == report["cut"]["payload_bytes"]
        assert sessions[1].run(latents)[0].tobytes() == sessions[2].run([x])[0].tobytes()


def test_what_the_whole_knows_goes_to_the_right_side(whole, tmp_path):
    split(whole, at="sum_q", out=tmp_path / "cut", fallback=whole)
    head, tail, source = (open_artefact(path) for path in (tmp_path / "cut" / "head", tmp_path / "cut" / "tail", whole))
    one, other, own = head.manifest, tail.manifest, source.manifest
    assert (one.role, other.role) == ("head", "tail")
    assert (one.target, other.target) == ("rpi-4b", this_board_id())
    assert (one.preprocessing, other.preprocessing) == (own.preprocessing, None)
    assert (one.postprocessing, other.postprocessing) == (Postprocessing(), own.postprocessing)
    assert one.fallback == source.id
    assert other.fallback is None
    assert one.inputs == own.inputs
    assert other.outputs == own.outputs
    assert one.outputs == other.inputs == one.cut.tensors == other.cut.tensors
    assert {spec.semantic for spec in one.outputs} == {"latent"}
    for manifest in (one, other):
        assert manifest.licences == own.licences
        assert manifest.model == own.model
        assert "LICENSES/weights.txt" in manifest.files_by_path
    assert "labels.txt" in other.files_by_path
    assert "labels.txt" not in one.files_by_path
    assert "golden/x.bin" not in one.files_by_path
    entry = one.files_by_path[one.entry]
    assert one.cut.cut_id == make_cut_id(
        head_sha256=entry.sha256, tensors=one.cut.tensors, codec="raw", tables_sha256=None
    )


def test_golden_vectors_hold_on_both_sides(whole, tmp_path):
    split(whole, at="c_q", out=tmp_path / "cut")
    for side in ("head", "tail"):
        artefact = open_artefact(tmp_path / "cut" / side)
        session = open_session(artefact)
        assert artefact.manifest.golden
        inputs = [artefact.manifest.files_by_path[one.inputs[0]].sha256 for one in artefact.manifest.golden]
        assert len(set(inputs)) == len(inputs), "a vector that comes twice proves nothing"
        for golden in artefact.manifest.golden:
            given = [read_raw(artefact, n, s) for n, s in zip(golden.inputs, artefact.manifest.inputs, strict=True)]
            wanted = [read_raw(artefact, n, s) for n, s in zip(golden.expected, artefact.manifest.outputs, strict=True)]
            assert (golden.compare, golden.tolerance == 1.0) == ("absolute", side == "head")
            assert all(np.array_equal(a, b) for a, b in zip(session.run(given), wanted, strict=True))


def test_the_same_cut_written_twice_is_the_same_pair(bare, tmp_path):
    source = open_cut_source(bare)
    cut = find_cuts(source.graph).cuts[1]
    options = [PairOptions(out=tmp_path / name, head_target="rpi-4b", tail_target="linux-x86-64") for name in "ab"]
    ids = [[artefact.id for artefact in write_pair(source, cut, one)] for one in options]
    assert ids[0] == ids[1]


def test_a_bare_file_and_a_row_number_will_do(bare, tmp_path, capsys):
    split(bare, at="3", out=tmp_path / "cut", target="rpi-5", json=True)
    assert [tensor["name"] for tensor in _json(capsys)["cut"]["tensors"]] == ["sum_q"]
    head = open_artefact(tmp_path / "cut" / "head").manifest
    assert (head.model.name, head.target) == ("bare", "rpi-5")


def test_the_python_function_cuts_as_the_command_does(whole, tmp_path):
    split(whole, at="c_q,r_q", out=tmp_path / "a", fallback=whole)
    head, tail = cut_network(whole, ["r_q", "c_q"], out=tmp_path / "b", fallback=open_artefact(whole))
    assert [head.id, tail.id] == [open_artefact(tmp_path / "a" / side).id for side in ("head", "tail")]


def test_other_bytes_are_never_written(bare, tmp_path):
    source = open_cut_source(bare)
    cuts = find_cuts(source.graph).cuts
    wrong = source.split(cuts[1])[0], source.split(cuts[1])[1].replace(b"Relu", b"Tanh")
    broken = type(source)(**{**vars(source), "split": lambda _: wrong})
    options = PairOptions(out=tmp_path / "cut", head_target="rpi-4b", tail_target="linux-x86-64")
    with pytest.raises(CutEqualityError, match="0 of 2 inputs equal"):
        write_pair(broken, cuts[1], options)
    assert not (tmp_path / "cut").exists()


def test_what_is_no_whole_int8_network_is_refused(whole, tmp_path):
    split(whole, at="c_q", out=tmp_path / "cut")
    with pytest.raises(CutSourceError, match="found a head of precision int8"):
        split(tmp_path / "cut" / "head", show=True)
    with pytest.raises(CutSourceError, match="headtail export"):
        split(type(tmp_path)("my_module:network"), show=True)


@pytest.mark.parametrize(
    ("at", "message"),
    [("nothing", "found 'nothing'"), ("r_q", "reaches it past them"), ("99", "row of --list"), ("c", "float32")],
)
def test_a_wrong_place_is_named(whole, at, message):
    with pytest.raises(CutError, match=message):
        split(whole, at=at)


def test_a_jetsons_pair_says_what_it_was_checked_on(whole, tmp_path, capsys):
    """TensorRT cannot run here: the head keeps it, the tail runs on the host, and nothing is claimed of TensorRT."""
    source = open_artefact(whole)
    manifest = msgspec.structs.replace(
        source.manifest, target="jetson-orin-nano-8gb", engine=Engine(name="tensorrt", built="not run"), files=()
    )
    files = {path: source.path(path) for path in source.manifest.files_by_path}
    jetson = write_artefact(tmp_path / "jetson", manifest, files).folder
    assert run(["split", str(jetson), "--at", "c_q", "--out", str(tmp_path / "cut")]) == 0
    text = capsys.readouterr().out
    assert "inputs (onnxruntime" in text
    assert "not on TensorRT" in text
    head, tail = (open_artefact(tmp_path / "cut" / side).manifest for side in ("head", "tail"))
    assert (head.engine.name, tail.engine.name, tail.engine.optimisation) == ("tensorrt", "onnxruntime", "basic")
    assert {golden.produced_on.split()[0] for golden in head.golden} == {"onnxruntime"}


def test_list_and_at_together_are_refused(whole):
    assert run(["split", str(whole), "--list", "--at", "c_q"]) == 1


@pytest.mark.parametrize("words", [["--layer", "b"], ["--list", "--tail-precision", "int8"]])
def test_words_of_a_training_without_a_method_are_refused(whole, capsys, words):
    assert run(["split", str(whole), *words]) == 1
    assert re.search(rf"TrainingUsageError: Wanted --method with {words[-2]}, .*klt", capsys.readouterr().err)


def test_networks_that_take_no_picture_have_no_rival(whole):
    spec = TensorSpec(name="x", engine_name="x", dtype="int8", shape=(1, 49, 10, 1))
    assert picture_input((spec,)) == (49, 10, 1)
    assert picture_input((msgspec.structs.replace(spec, shape=(1, 490)),)) is None
    assert measure_picture((spec, spec), None) is None
    grey = measure_picture((msgspec.structs.replace(spec, shape=(1, 96, 96, 1)),), None)
    colour = measure_picture((msgspec.structs.replace(spec, shape=(1, 96, 96, 3)),), None)
    assert grey.jpeg_bytes < colour.jpeg_bytes
