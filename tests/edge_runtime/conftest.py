"""A tiny artefact that every test of the runtime can open (y = x + 1 in ONNX), and a device under a host."""

import threading
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.artefact import pack_artefact, write_artefact
from edge_runtime.gate import install_trust
from edge_runtime.manifest import Engine, Golden, Manifest, ModelInfo, TensorSpec, Tool
from edge_runtime.messages import (
    ArtefactRef,
    Desired,
    JobStatus,
    Reported,
    Topics,
    decode_control,
    encode_control,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from orchestrator.artefact_server import ArtefactServer
from orchestrator.signing import first_trust, make_key, read_key, sign_artefact


def add_one_model(shape):
    """The bytes of an ONNX model that adds one."""
    node = helper.make_node("Add", ["x", "one"], ["y"])
    graph = helper.make_graph(
        [node],
        "add_one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def draft_manifest(shape=(1, 4), **changes):
    """A valid manifest of `add_one_model` without its files."""
    values = {
        "schema": 1,
        "tool": Tool(name="headtail", version="test"),
        "model": ModelInfo(name="add-one", source_sha256="0" * 64),
        "role": "whole",
        "target": "linux-x86-64",
        "precision": "fp32",
        "engine": Engine(name="onnxruntime", built="1.32.0"),
        "entry": "model.onnx",
        "inputs": (TensorSpec(name="x", engine_name="x", dtype="float32", shape=shape),),
        "outputs": (TensorSpec(name="y", engine_name="y", dtype="float32", shape=shape),),
        "files": (),
        "golden": (
            Golden(inputs=("golden/x0.bin",), expected=("golden/y0.bin",), compare="exact", produced_on="test"),
        ),
    }
    return Manifest(**{**values, **changes})


def artefact_files(shape=(1, 4)):
    """The files that `draft_manifest` refers to."""
    x = np.arange(np.prod(shape), dtype="<f4").reshape(shape)
    return {"model.onnx": add_one_model(shape), "golden/x0.bin": x.tobytes(), "golden/y0.bin": (x + 1).tobytes()}


@pytest.fixture
def add_one(tmp_path):
    """An artefact that adds one to four floats."""
    return write_artefact(tmp_path / "add-one", draft_manifest(), artefact_files())


@pytest.fixture
def make_add_one(tmp_path):
    """Build variants of the artefact: `make_add_one(name, shape=..., **manifest changes)`."""

    def make(name, shape=(1, 4), **changes):
        return write_artefact(tmp_path / name, draft_manifest(shape, **changes), artefact_files(shape))

    return make


@pytest.fixture
def draft():
    """`draft_manifest` and `artefact_files`, for tests that write by hand."""
    return draft_manifest, artefact_files


HOST = "0" * 16


class Host:
    """A device under a host that retains desired states."""

    def __init__(self, url, name, state):
        self.topics = Topics("default", name)
        self.said = SimpleQueue()
        kinds = {self.topics.up("reported"): Reported, self.topics.up("job"): JobStatus}
        options = LinkOptions(subscriptions=tuple((topic, 1) for topic in kinds))
        self.link = MqttLink(url, options, lambda topic, data, _: self.said.put(decode_control(data, kinds[topic])))
        self.agent = Agent(AgentOptions(broker=url, device=name, state=state, heartbeat_s=60))
        self._thread = threading.Thread(target=self.agent.run, daemon=True)

    def __enter__(self):
        self.link.start().wait_connected(20)
        self._thread.start()
        self.agent._link.wait_connected(20)
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self._thread.join(10)
        self.link.close()

    def want(self, rev, **more):
        desired = Desired(boot=HOST, rev=rev, job=f"job{rev}", **{"probation_s": 0.0, **more})
        self.link.publish(Packet(self.topics.desired, encode_control(desired), 1, retain=True))

    def wait_for(self, rev, *states):
        found = []
        while not found or found[-1] not in states:
            try:
                message = self.said.get(timeout=20)
            except Empty:
                pytest.fail(f"rev {rev}: {found}")
            if isinstance(message, Reported) and message.rev == rev:
                found.append(message.state)
                last = message
        return last, found


@pytest.fixture
def served(network, tmp_path):
    """Signed versions of head and whole, and what the host says of them; another key's too."""
    keys = {name: make_key(tmp_path / f"{name}.pem", name=name) for name in ("ours", "stranger")}
    install_trust(tmp_path / "state" / "trust.json", first_trust([keys["ours"]], 1))
    with ArtefactServer(tmp_path / "served") as server:

        def make(artefact, counter, key="ours"):
            manifest = msgspec.structs.replace(artefact.manifest, files=())
            files = {path: artefact.path(path).read_bytes() for path in artefact.manifest.files_by_path}
            made = write_artefact(tmp_path / f"{counter}{key}", manifest, {**files, "n": str(counter).encode()})
            sign_artefact(made, [read_key(tmp_path / f"{key}.pem")], counter=counter, line=artefact.manifest.role)
            offer = server.offer(pack_artefact(made, tmp_path / "packed.zip"))
            return ArtefactRef(artefact=made.id, zip_sha256=offer.zip_sha256, size=offer.size, url=offer.url)

        yield make
