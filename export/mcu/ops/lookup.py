"""Any function of one int8 is a table of 256 bytes: activations, requantisation, arithmetic with a constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.fixedpoint import Int64s
from export.mcu.ops.base import Op
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

EVERY_INT8 = np.arange(-128, 128, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Lookup(Op):
    """``out = table[in + 128]``; ``function`` names the operator that the table stands for."""

    table: np.ndarray  # int8, shape (256,)
    function: str

    @property
    def kind(self) -> str:
        """The operator that the table stands for."""
        return self.function


def add_lookup(node: Node, net: NetworkBuilder, place: int, function: Callable[[Int64s], Int64s]) -> None:
    """Append a Lookup of ``function`` over input ``place``; results must be int8 integers."""
    view = net.view(node, place)
    target = net.file.tensors[node.outputs[0]]
    if view.shape != target.shape:
        raise ModelFileError(
            f"node {node.index} ({node.op}): input {view.shape} and output {target.shape} differ in shape."
        )
    source = net.values[view.key]
    output = net.define(node.outputs[0], view.axes)
    if output.shape != source.shape:  # a reshaped view: make the copy explicit
        raise node.refuse(f"a reshaped input {view.shape}", "an input in its producer's shape")
    table = function(EVERY_INT8)
    net.ops.append(Lookup(node.index, (view.key,), output.key, table.astype(np.int8), node.op))
