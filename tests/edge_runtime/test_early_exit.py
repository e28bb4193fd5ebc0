"""A head with an exit: sure answers send nothing, unsure ones go to the tail, and the exit answers where nobody else does."""

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from edge_runtime.artefact import file_sha256, write_artefact
from edge_runtime.manifest import (
    Cut,
    EarlyExit,
    Engine,
    Golden,
    Manifest,
    ManifestError,
    ModelInfo,
    TensorSpec,
    Tool,
    canonical_bytes,
    check_manifest,
    make_cut_id,
    parse_manifest,
)
from edge_runtime.mqtt import NotConnectedError
from edge_runtime.offloader import Offloader, OffloadOptions
from orchestrator.tail_server import TailServer, serve_artefact

SURE = np.array([[9, 0, 0, 0, 0, 0, 0, 0]], np.float32)
UNSURE = np.ones((1, 8), np.float32)
NOBODY = "mqtt://127.0.0.1:9"


def _spec(name, semantic):
    return TensorSpec(name=name, engine_name=name, dtype="float32", shape=(1, 8), semantic=semantic)


@pytest.fixture(scope="module")
def heads(tmp_path_factory, network):
    """The network's head and tail, the head with a second output: logits = x."""
    root = tmp_path_factory.mktemp("exit")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["h"]), helper.make_node("Identity", ["x"], ["early"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("h", "early")],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    (root / "head.onnx").write_bytes(model)
    latent = _spec("h", "latent")
    cut_id = make_cut_id(
        head_sha256=file_sha256(root / "head.onnx"), tensors=(latent,), codec="raw", tables_sha256=None
    )
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="tiny", source_sha256="1" * 64),
        role="head",
        target="linux-x86-64",
        precision="fp32",
        engine=Engine(name="onnxruntime", built="1"),
        entry="model.onnx",
        inputs=(_spec("x", "tensor"),),
        outputs=(latent, _spec("early", "logits")),
        files=(),
        golden=(Golden(inputs=("golden/i",), expected=("golden/o", "golden/e"), compare="exact", produced_on="test"),),
        cut=Cut(cut_id=cut_id, tensors=(latent,)),
        early_exit=EarlyExit(output="early", temperature=2.0, threshold=0.9),
    )
    x = network.x
    files = {"model.onnx": model, "golden/i": x.tobytes(), "golden/o": (2 * x).tobytes(), "golden/e": x.tobytes()}
    head = write_artefact(root / "head", manifest, files)
    tail = network.tail
    tail_files = {name: tail.path(name).read_bytes() for name in tail.manifest.files_by_path}
    accepting = replace(tail.manifest, files=(), cut=Cut(accepts=(cut_id,), tensors=tail.manifest.cut.tensors))
    return head, write_artefact(root / "tail", accepting, tail_files)


def test_a_sure_answer_sends_nothing_and_an_unsure_one_asks_the_tail(broker, heads):
    head, tail = heads
    with (
        TailServer(broker, [serve_artefact(tail)]),
        Offloader(broker, "dev-exit", head=head, options=OffloadOptions(deadline_ms=10_000)) as device,
    ):
        device.wait_connected()
        sure = device.infer(SURE)
        assert (sure.source, sure.bytes_sent, sure.why_local) == ("exit", 0, None)
        assert sure.outputs[0].tolist() == SURE.tolist()
        unsure = device.infer(UNSURE)
        assert (unsure.source, unsure.outputs[0].tolist()) == ("remote", (2 * UNSURE + 1).tolist())
        counters = device.counters
        assert (counters.local, counters.remote, counters.failed) == (1, 1, 0)


def test_without_a_tail_the_exit_answers_in_place_of_a_whole_model(heads):
    with Offloader(NOBODY, "dev", head=heads[0], options=OffloadOptions(deadline_ms=200)) as device:
        answer = device.infer(UNSURE)
        assert (answer.source, answer.bytes_sent) == ("exit", 0)
        assert answer.outputs[0].tolist() == UNSURE.tolist()
        assert answer.why_local


def test_a_whole_model_answers_before_an_unsure_exit(heads, network):
    with Offloader(NOBODY, "dev", head=heads[0], fallback=network.whole) as device:
        assert device.infer(UNSURE).source == "local"
        assert device.infer(SURE).source == "exit"


def test_a_head_without_an_exit_still_fails_by_name(network):
    with (
        Offloader(NOBODY, "dev", head=network.head, options=OffloadOptions(deadline_ms=200)) as device,
        pytest.raises(NotConnectedError),
    ):
        device.infer(network.x)


def test_manifests_without_an_exit_keep_their_bytes(heads, network):
    assert b"early_exit" not in canonical_bytes(network.head.manifest)
    again = parse_manifest(canonical_bytes(heads[0].manifest))
    assert again.early_exit == EarlyExit(output="early", temperature=2.0, threshold=0.9)


@pytest.mark.parametrize(
    "change",
    [{"output": "h"}, {"output": "nothing"}, {"temperature": 0.0}, {"threshold": float("inf")}, {"threshold": -1.0}],
)
def test_exits_that_cannot_be_are_refused(heads, change):
    manifest = heads[0].manifest
    wrong = replace(manifest, early_exit=replace(manifest.early_exit, **change))
    with pytest.raises(ManifestError):
        check_manifest(wrong)
