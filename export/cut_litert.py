"""Cut a quantised .tflite network into head.tflite and tail.tflite at integer tensors.

The flatbuffer is unpacked, each side keeps the operators, tensors, buffers and operator codes that it needs, and the
crossing tensors become outputs and inputs. Nothing is computed anew: scales, weights and operator versions stay as
they are, so the interpreter runs the same kernels on the same bytes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edge_runtime.manifest import Quantisation, TensorSpec
from export.tflite_checks import TfliteCutError, check_budget, check_indices, check_sizes, fetch_buffers, items
from export.tflite_macs import operator_macs
from export.tflite_model import read_tflite
from export.tflite_write import Part, write_part
from split.cut_graph import CutGraph, CutNode, CutTensor
from split.cuts import Cut

_DTYPES = {
    value: {"FLOAT32": "float32", "FLOAT16": "float16", "FLOAT64": "float64"}.get(name, name.lower())
    for name, value in vars(schema.TensorType).items()
    if isinstance(value, int)
}
_OPERATORS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_DAMAGE = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class TfliteNetwork:
    """A checked model; node i of the graph is operator i, and `names` gives each tensor index its unique name."""

    model: Any  # schema.ModelT
    graph: CutGraph
    names: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def load_tflite(source: Path | bytes) -> TfliteNetwork:
    """Read and check a .tflite model.

    Args:
        source: A file or its bytes.

    Raises:
        SourceError: Not .tflite, damaged, weights outside, or custom operators.
        TfliteCutError: Several graphs, state, sparse tensors, or parts that overlap more than a converter makes them.
        CutGraphError: Operators out of order, or a tensor made twice.
    """
    where = str(source) if isinstance(source, Path) else "the given bytes"
    data = source.read_bytes() if isinstance(source, Path) else source
    described = read_tflite(data, where=where)
    try:
        table = schema.Model.GetRootAs(data, 0)
        check_sizes(table, where)
        model = schema.ModelT.InitFromObj(table)
        fetch_buffers(model, data, where)
        check_budget(model, len(data), where)
        check_indices(model, where)
        names = _unique_names(model.subgraphs[0])
        graph = _to_graph(model, names, where)
    except _DAMAGE as error:
        raise TfliteCutError(
            f"Wanted a .tflite file, found a damaged one ({error}) in {where}. Convert it again."
        ) from error
    return TfliteNetwork(model, graph, names, described.inputs, described.outputs)


def split_tflite(network: TfliteNetwork, cut: Cut) -> tuple[bytes, bytes]:
    """Write the two files of a cut: (head, tail).

    Tensors carry their unique names. Of the metadata only the least runtime version is kept; a signature is written
    where the whole network has one.
    """
    graph = network.graph
    tail, _ = graph.reach_back(graph.outputs, stop=frozenset(cut.names))
    head, read = graph.reach_back(cut.names)
    inputs = [name for name in graph.inputs if name in read]
    return (
        write_part(network.model, network.names, Part(head, inputs, cut.names, "head")),
        write_part(network.model, network.names, Part(tail, cut.names, graph.outputs, "tail")),
    )


def _unique_names(graph: Any) -> tuple[str, ...]:  # noqa: ANN401 - schema.SubGraphT
    """One name for each tensor; inputs and outputs keep theirs first, later duplicates get their index."""
    names = [""] * len(graph.tensors)
    taken: set[str] = set()
    ends = [*items(graph.inputs), *items(graph.outputs)]
    for index in dict.fromkeys([*ends, *range(len(names))]):
        own = (graph.tensors[index].name or b"").decode("utf-8", "replace") or f"tensor_{index}"
        while own in taken:
            own = f"{own}#{index}"
        taken.add(own)
        names[index] = own
    return tuple(names)


def _to_graph(model: Any, names: tuple[str, ...], where: str) -> CutGraph:  # noqa: ANN401 - schema.ModelT
    graph = model.subgraphs[0]
    inputs = [int(index) for index in items(graph.inputs)]
    made = {int(index) for operator in graph.operators for index in items(operator.outputs)} | set(inputs)
    constants = {}
    for index, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if index not in made and data is not None:
            constants[names[index]] = len(data)
    shapes = [tuple(int(size) for size in items(tensor.shape)) for tensor in graph.tensors]
    nodes = []
    for number, operator in enumerate(graph.operators):
        kind = _kind(model.operatorCodes[operator.opcodeIndex])
        if any(items(operator.mutatingVariableInputs)):
            raise TfliteCutError(f"Wanted a network without state, found {kind} (operator {number}) in {where}.")
        used = [int(index) for index in items(operator.inputs)]
        outputs = [int(index) for index in items(operator.outputs)]
        nodes.append(
            CutNode(
                name=f"{kind}_{number}",
                op=kind,
                inputs=tuple(names[index] for index in used if index >= 0 and names[index] not in constants),
                outputs=tuple(names[index] for index in outputs),
                macs=operator_macs(
                    kind, [shapes[i] if i >= 0 else None for i in used], shapes[outputs[0]] if outputs else ()
                ),
                constants=tuple(names[index] for index in used if index >= 0 and names[index] in constants),
                repeatable=kind == "DEQUANTIZE",
            )
        )
    tensors = {names[index]: _tensor(graph.tensors[index], names[index], shapes[index]) for index in made}
    return CutGraph(
        nodes=tuple(nodes),
        tensors=tensors,
        constants=constants,
        inputs=tuple(names[index] for index in inputs),
        outputs=tuple(names[int(index)] for index in items(graph.outputs)),
    )


def _tensor(tensor: Any, name: str, shape: tuple[int, ...]) -> CutTensor:  # noqa: ANN401 - schema.TensorT
    found = tensor.quantization
    quantisation = None
    if found is not None and len(items(found.scale)) == 1 and len(items(found.zeroPoint)) <= 1:
        scale = float(found.scale[0])
        if 0.0 < scale < float("inf"):
            zero_point = int(found.zeroPoint[0]) if len(items(found.zeroPoint)) else 0
            quantisation = Quantisation(scale=scale, zero_point=zero_point)
    return CutTensor(name, shape, _DTYPES.get(tensor.type, f"type {tensor.type}"), quantisation)


def _kind(code: Any) -> str:  # noqa: ANN401 - schema.OperatorCodeT
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(_OPERATORS.get(number, f"OPERATOR_{number}"))
