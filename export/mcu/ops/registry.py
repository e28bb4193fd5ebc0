"""Which reader lowers which operator of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from export.mcu.errors import UnsupportedOpError
from export.mcu.ops.add import read_add
from export.mcu.ops.concatenation import read_concatenation
from export.mcu.ops.conv2d import read_conv2d
from export.mcu.ops.depthwise import read_depthwise
from export.mcu.ops.fully_connected import read_fully_connected
from export.mcu.ops.hard_swish import read_hard_swish
from export.mcu.ops.layout import read_reshape, read_transpose
from export.mcu.ops.logistic import read_logistic
from export.mcu.ops.mean import read_mean
from export.mcu.ops.mul import read_mul
from export.mcu.ops.pad import read_pad
from export.mcu.ops.pool import read_pool
from export.mcu.ops.quantize import read_dequantize, read_quantize
from export.mcu.ops.relu import read_relu
from export.mcu.ops.resize_nearest import read_resize_nearest
from export.mcu.ops.softmax import read_softmax
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

READERS: Mapping[str, Callable[[Node, NetworkBuilder], None]] = {
    "ADD": read_add,
    "AVERAGE_POOL_2D": read_pool,
    "CONCATENATION": read_concatenation,
    "CONV_2D": read_conv2d,
    "DEPTHWISE_CONV_2D": read_depthwise,
    "DEQUANTIZE": read_dequantize,
    "FULLY_CONNECTED": read_fully_connected,
    "HARD_SWISH": read_hard_swish,
    "LOGISTIC": read_logistic,
    "MAX_POOL_2D": read_pool,
    "MEAN": read_mean,
    "MUL": read_mul,
    "PAD": read_pad,
    "QUANTIZE": read_quantize,
    "RELU": read_relu,
    "RELU6": read_relu,
    "RESHAPE": read_reshape,
    "RESIZE_NEAREST_NEIGHBOR": read_resize_nearest,
    "SOFTMAX": read_softmax,
    "TRANSPOSE": read_transpose,
}


def check_supported(nodes: tuple[Node, ...]) -> None:
    """Refuse a network with unknown operators before anything else, naming all of them.

    Raises:
        UnsupportedOpError: Some operator has no reader.
    """
    unknown = [node for node in nodes if node.op not in READERS]
    if unknown:
        named = ", ".join(f"node {node.index} ({node.op})" for node in unknown[:8])
        raise UnsupportedOpError(f"{named}: no C kernel for it. Accepted: {', '.join(sorted(READERS))}.")
