"""Fixtures of the whole suite: a real broker, and a tiny network whole and cut, made on the spot."""

import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from onnx import TensorProto, helper

from edge_runtime.artefact import Artefact, file_sha256, write_artefact
from edge_runtime.manifest import Cut, Engine, Golden, Manifest, ModelInfo, TensorSpec, Tool, make_cut_id
from orchestrator.broker import BrokerOptions, EmbeddedBroker, MosquittoBroker

# No test is timed, these neither. CI takes the same examples every time; a developer's machine looks for new ones.
settings.register_profile("house", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "house")

# A shell's background job ignores Ctrl-C and hands that down to what tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Deselect (pytest counts and prints that) what needs files that are not here, unless the command asks for it.

    `arm64` needs the user space of `scripts/setup-arm64` (`make test-arm64`), `browser` a Chromium (`make test-browser`),
    `shared_data` the folder HEADTAIL_DATA.
    """
    asked = [config.option.markexpr, *config.args]
    for mark, is_there in (
        ("arm64", False),
        ("browser", False),
        ("shared_data", bool(os.environ.get("HEADTAIL_DATA"))),
    ):
        left_out = [item for item in items if item.get_closest_marker(mark) is not None]
        if is_there or any(mark in text for text in asked) or not left_out:
            continue
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _signals_as_before():
    """Commands that run within a test leave their handlers: the next test gets those of before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def broker():
    """URL of a mosquitto that the whole session shares."""
    with MosquittoBroker(BrokerOptions(port=0)) as running:
        yield running.url


@pytest.fixture
def own_broker():
    """A mosquitto that a test may stop and start; it takes packets up to 300 kB."""
    with MosquittoBroker(BrokerOptions(port=0, max_packet_bytes=300_000)) as running:
        yield running


@pytest.fixture(scope="session")
def embedded_broker():
    """URL of the embedded broker."""
    with EmbeddedBroker(BrokerOptions(port=0)) as running:
        yield running.url


@dataclass(frozen=True)
class Network:
    """y = 2 x + 1 on eight floats: whole, and cut after the multiplication."""

    whole: Artefact
    head: Artefact
    tail: Artefact
    x: np.ndarray  # (1, 8)
    y: np.ndarray


def _spec(name, **more):
    return TensorSpec(name=name, engine_name=name, dtype="float32", shape=(1, 8), **more)


def _model(nodes, source, sink):
    values = {"two": 2.0, "one": 1.0}
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "g",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info(sink, TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def _write(folder, role, model, tensors, cut=None):
    (source, before), (sink, after) = tensors
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="tiny", source_sha256="1" * 64),
        role=role,
        target="linux-x86-64",
        precision="fp32",
        engine=Engine(name="onnxruntime", built="1"),
        entry="model.onnx",
        inputs=(_spec(source),),
        outputs=(_spec(sink, semantic="logits" if sink == "y" else "latent"),),
        files=(),
        golden=(Golden(inputs=("golden/i",), expected=("golden/o",), compare="exact", produced_on="test"),),
        cut=cut,
    )
    return write_artefact(
        folder, manifest, {"model.onnx": model, "golden/i": before.tobytes(), "golden/o": after.tobytes()}
    )


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """The tiny network as three artefacts, with an input and its output."""
    root = tmp_path_factory.mktemp("network")
    x = np.arange(8, dtype=np.float32)[np.newaxis]
    double, plus = ("Mul", ["x", "two"], ["h"]), ("Add", ["h", "one"], ["y"])
    values = {"x": ("x", x), "h": ("h", 2 * x), "y": ("y", 2 * x + 1)}
    head_model = root / "head.onnx"
    head_model.write_bytes(_model([double], "x", "h"))
    cut_id = make_cut_id(head_sha256=file_sha256(head_model), tensors=(_spec("h"),), codec="raw", tables_sha256=None)
    head_cut, tail_cut = Cut(cut_id=cut_id, tensors=(_spec("h"),)), Cut(accepts=(cut_id,), tensors=(_spec("h"),))
    return Network(
        whole=_write(root / "whole", "whole", _model([double, plus], "x", "y"), (values["x"], values["y"])),
        head=_write(root / "head", "head", head_model.read_bytes(), (values["x"], values["h"]), head_cut),
        tail=_write(root / "tail", "tail", _model([plus], "h", "y"), (values["h"], values["y"]), tail_cut),
        x=x,
        y=2 * x + 1,
    )
