"""Put two .tflite files together: the second one's first input is the first one's first output."""

import copy
from typing import Any

from export.cut_litert import TfliteNetwork, load_tflite
from export.errors import ConversionError
from export.tflite_checks import items
from export.tflite_write import Part, write_part

HEAD, TAIL = "head/", "tail/"


def rename_ends(data: bytes, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> bytes:
    """Give inputs and outputs the names that users know, in the file's order.

    Raises:
        EdgeError: As `load_tflite`.
    """
    network = load_tflite(data)
    graph, names = network.model.subgraphs[0], list(network.names)
    for wanted, indices in ((inputs, graph.inputs), (outputs, graph.outputs)):
        for name, index in zip(wanted, items(indices), strict=True):
            names[int(index)] = name
    return write_part(network.model, tuple(names), Part(range(len(graph.operators)), inputs, outputs, "head"))


def join_tflite(head: bytes, tail: bytes, *, keep_latent: bool = False) -> bytes:
    """The unsplit network as one .tflite file: each half's tensors keep their names behind `head/` and `tail/`.

    Args:
        head: Its first output is what the tail reads; others are left out.
        tail: One input of the same type and shape.
        keep_latent: What crosses is the first output, under its own name in the head.

    Raises:
        ConversionError: They do not fit together.
        EdgeError: As `load_tflite`.
    """
    first, second = load_tflite(head), load_tflite(tail)
    crossing, read = first.outputs[:1], second.inputs
    ends = [(one.dtype, one.shape) for one in crossing], [(one.dtype, one.shape) for one in read]
    if ends[0] != ends[1]:
        raise ConversionError(f"Wanted a head and its tail, found outputs {ends[0]} and inputs {ends[1]}.")
    names = tuple([HEAD + one for one in first.names] + [TAIL + one for one in second.names])
    outputs = [TAIL + one.engine_name for one in second.outputs]
    if keep_latent:
        outputs.insert(0, HEAD + crossing[0].engine_name)
    model = _merged(first, second)
    count = len(model.subgraphs[0].operators)
    inputs = [HEAD + one.engine_name for one in first.inputs]
    return write_part(model, names, Part(range(count), inputs, outputs, "head"))


def _merged(first: TfliteNetwork, second: TfliteNetwork) -> Any:  # noqa: ANN401 - schema.ModelT
    """Both models in one: buffers, codes, tensors and operators of the second stand behind those of the first."""
    model = copy.copy(first.model)
    graph, other = copy.copy(first.model.subgraphs[0]), second.model.subgraphs[0]
    buffers, codes, tensors = len(model.buffers), len(model.operatorCodes), len(graph.tensors)
    model.buffers = [*model.buffers, *second.model.buffers]
    model.operatorCodes = [*model.operatorCodes, *second.model.operatorCodes]
    model.signatureDefs = None  # it would name the ends of one half
    crossing = {int(items(other.inputs)[0]): int(items(graph.outputs)[0])}
    graph.tensors = list(graph.tensors)
    for tensor in other.tensors:
        moved = copy.copy(tensor)
        moved.buffer = int(tensor.buffer) + buffers
        graph.tensors.append(moved)
    graph.operators = list(graph.operators)
    for operator in other.operators:
        moved = copy.copy(operator)
        moved.opcodeIndex = operator.opcodeIndex + codes
        for field in ("inputs", "outputs", "intermediates"):
            setattr(moved, field, [_moved(int(one), tensors, crossing) for one in items(getattr(operator, field))])
        graph.operators.append(moved)
    graph.outputs = [int(one) + tensors for one in items(other.outputs)]
    model.subgraphs = [graph]
    return model


def _moved(index: int, tensors: int, crossing: dict[int, int]) -> int:
    return index if index < 0 else crossing.get(index, index + tensors)
