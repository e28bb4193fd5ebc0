"""Checks of an unpacked .tflite model before it is cut: bounded parts, no state, no control flow, numbers in range."""

from typing import Any

import numpy as np

from device_profiles.errors import EdgeError
from split.cut_graph import MAX_NODES

_MAX_PARTS = 200_000  # tensors, buffers
_MAX_RANK = 8


class TfliteCutError(EdgeError):
    """A .tflite file cannot be cut: damaged, or it holds state, control flow or several graphs."""


def items(vector: Any) -> Any:  # noqa: ANN401 - a numpy array, a list or null
    """A vector of the flatbuffer; empty when it is absent."""
    return () if vector is None else vector


def check_sizes(table: Any, where: str) -> None:  # noqa: ANN401 - a generated flatbuffer class
    """Bound every list of tables before the whole file is unpacked, and refuse what cannot be cut."""
    if table.SubgraphsLength() != 1:
        raise TfliteCutError(
            f"Wanted one graph, found {table.SubgraphsLength()} (control flow or several signatures) in {where}. "
            "Convert the network without loops and branches, one signature a file."
        )
    graph = table.Subgraphs(0)
    counts = {
        "operators": (graph.OperatorsLength(), MAX_NODES),
        "tensors": (graph.TensorsLength(), _MAX_PARTS),
        "buffers": (table.BuffersLength(), _MAX_PARTS),
        "operator codes": (table.OperatorCodesLength(), 4096),
        "metadata entries": (table.MetadataLength(), 256),
        "signatures": (table.SignatureDefsLength(), 1),
    }
    for what, (count, most) in counts.items():
        if count > most:
            raise TfliteCutError(f"Wanted at most {most} {what}, found {count} in {where}.")
    for index in range(table.SignatureDefsLength()):
        signature = table.SignatureDefs(index)
        if max(signature.InputsLength(), signature.OutputsLength()) > 256:
            raise TfliteCutError(f"Wanted a signature of at most 256 tensors, found more in {where}.")
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if tensor.Sparsity() is not None or tensor.VariantTensorsLength():
            raise TfliteCutError(f"Wanted dense tensors, found a sparse or variant tensor {index} in {where}.")
        if tensor.IsVariable():
            raise TfliteCutError(
                f"Wanted a network without state, found the variable tensor {index} in {where}. "
                "Make the state an input and an output."
            )


def fetch_buffers(model: Any, data: bytes, where: str) -> None:  # noqa: ANN401 - schema.ModelT
    """Take in the weights that a converter wrote behind the flatbuffer (offset and size instead of data)."""
    for index, buffer in enumerate(model.buffers):
        offset, size = int(buffer.offset or 0), int(buffer.size or 0)
        if offset > 1:
            if buffer.data is not None or offset + size > len(data):
                raise TfliteCutError(
                    f"Wanted the {size} B of buffer {index} at {offset} inside of {len(data)} B, found otherwise in {where}."
                )
            buffer.data = np.frombuffer(data, np.uint8, size, offset)


def check_budget(model: Any, file_bytes: int, where: str) -> None:  # noqa: ANN401 - schema.ModelT
    """Parts of a flatbuffer may overlap, so that a small file unpacks to a huge one; no converter does that."""
    total = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    graph = model.subgraphs[0]
    small = 0
    for tensor in graph.tensors:
        if len(items(tensor.shape)) > _MAX_RANK:
            raise TfliteCutError(f"Wanted tensors of at most {_MAX_RANK} sizes, found {len(tensor.shape)} in {where}.")
        found = tensor.quantization
        if found is not None:
            small += 4 * sum(len(items(part)) for part in (found.min, found.max, found.scale))
            small += 8 * len(items(found.zeroPoint))
    for operator in graph.operators:
        small += 4 * (len(items(operator.inputs)) + len(items(operator.outputs)) + len(items(operator.intermediates)))
        small += len(items(operator.customOptions))
        if (operator.largeCustomOptionsOffset or 0) > 1:
            raise TfliteCutError(f"Wanted builtin operators, found large custom options in {where}.")
    if total > file_bytes or small > 16 * file_bytes:
        raise TfliteCutError(
            f"Wanted parts that do not overlap, found {total + small} B of them in {file_bytes} B of {where}."
        )


def check_indices(model: Any, where: str) -> None:  # noqa: ANN401 - schema.ModelT
    """Tensor numbers are in range; only an operator's optional inputs may be left out (-1)."""
    graph = model.subgraphs[0]
    count = len(graph.tensors)
    lists: list[tuple[int, Any]] = [(0, graph.inputs), (0, graph.outputs)]
    named = [entry for one in items(model.signatureDefs) for entry in [*items(one.inputs), *items(one.outputs)]]
    lists.append((0, [entry.tensorIndex for entry in named]))
    for operator in graph.operators:
        lists += [(-1, operator.inputs), (0, operator.outputs), (-1, operator.intermediates)]
    for least, numbers in lists:
        for number in items(numbers):
            if not least <= number < count:
                raise TfliteCutError(f"Wanted tensor numbers {least} to {count - 1}, found {number} in {where}.")
