"""A tiny artefact that every test of the runtime can open: y = x + 1 in ONNX."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from edge_runtime.artefact import write_artefact
from edge_runtime.manifest import Engine, Golden, Manifest, ModelInfo, TensorSpec, Tool


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
