"""Compares every tensor of the generated C with the reference engine's, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.mcu.emit_network import emit_network
from export.mcu.graph import tensor_places, to_patch_graph
from export.mcu.keep_all import keep_all_plan
from export.mcu.native import NativeNetwork
from export.mcu.network import Network
from export.mcu.oracle import Int8s, Oracle


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs: which operator wrote it and how many elements are wrong."""

    node: int
    kind: str
    tensor: str
    elements: int
    of: int


@dataclass(frozen=True)
class TensorProof:
    """All tensors over all inputs."""

    inputs: int
    elements: int
    differences: tuple[TensorDifference, ...]


def prove_tensors(
    network: Network, oracle: Oracle, inputs: Sequence[tuple[Int8s, ...]], *, library: Path, folder: Path
) -> TensorProof:
    """Run the layer-wise, keep-everything build and compare each tensor.

    Args:
        network: The network.
        oracle: The reference engine for the same file.
        inputs: Input sets.
        library: Result of ``native.build_library``.
        folder: An empty folder for the build.

    Returns:
        Element counts; ``differences`` in execution order, empty for a proof.
    """
    plan = keep_all_plan(to_patch_graph(network, name="proof"))
    code = emit_network(network, plan, name="proof", source="proof")
    native = NativeNetwork(network, plan, code, library=library, folder=folder)
    places = tensor_places(network)
    offsets = {buffer.tensor: buffer.offset for segment in plan.segments for buffer in segment.buffers}
    elements = 0
    found: list[TensorDifference] = []
    for one, truth in zip(inputs, oracle.run_all(inputs), strict=True):
        native.run(one)
        for op in network.ops:
            value, wanted = network.values[op.output], truth.tensors[op.output]
            got = native.read(offsets[places[op.output]], value.shape)
            wrong = int((got != wanted).sum())
            elements += wanted.size
            if wrong:
                found.append(TensorDifference(op.node, op.kind, value.name, wrong, wanted.size))
    return TensorProof(len(inputs), elements, tuple(found))
