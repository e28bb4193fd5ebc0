"""Multiply-accumulates of TFLite operators, from shapes."""

from math import prod

Shape = tuple[int, ...]


def operator_macs(kind: str, inputs: list[Shape | None], output: Shape) -> int:
    """Multiply-accumulates of one run; 0 for anything but convolutions and matrix products.

    Args:
        kind: Name of the builtin operator, such as "CONV_2D".
        inputs: Shapes of its inputs in order, constants included; null where one is left out.
        output: Shape of its first output.
    """
    weight = inputs[1] if len(inputs) > 1 else None
    if kind in ("CONV_2D", "CONV_3D", "FULLY_CONNECTED") and weight:
        inner = prod(weight[:-1]) if kind == "CONV_3D" else prod(weight[1:])
        return prod(output) * inner
    if kind == "DEPTHWISE_CONV_2D" and weight and len(weight) == 4:
        return prod(output) * weight[1] * weight[2]  # weight (1, height, width, out)
    if kind == "TRANSPOSE_CONV" and weight and len(inputs) > 2 and inputs[2]:
        return prod(inputs[2]) * prod(weight[:-1])  # inputs: output shape, weight (out, height, width, in), map
    if kind == "BATCH_MATMUL" and inputs[0] and weight and len(inputs[0]) >= 2 and len(weight) >= 2:
        rows = output[-2] if len(output) >= 2 else 1
        inner = prod(inputs[0][-2:]) // max(rows, 1)  # left (.., rows, inner) or its transpose
        return prod(output) * inner
    return 0
