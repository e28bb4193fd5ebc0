"""One-operator int8 models for the TensorFlow Lite Micro interpreter."""

from dataclasses import dataclass, field

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from tflite_micro import runtime


@dataclass
class Tensor:
    shape: tuple
    scales: tuple
    zeros: tuple = (0,)
    data: np.ndarray | None = None
    axis: int = 0
    kind: int = tfl.TensorType.INT8


@dataclass
class OneOp:
    """``tensors`` in input order, then the output."""

    code: int
    options_type: int
    options: object
    tensors: list = field(default_factory=list)


def _tensor(spec, index, buffers):
    t = tfl.TensorT()
    t.shape, t.type, t.name = list(spec.shape), spec.kind, f"t{index}"
    if spec.scales:
        q = tfl.QuantizationParametersT()
        q.scale, q.zeroPoint = [float(s) for s in spec.scales], [int(z) for z in spec.zeros]
        q.quantizedDimension = spec.axis
        t.quantization = q
    buffer = tfl.BufferT()
    if spec.data is not None:
        buffer.data = np.frombuffer(np.ascontiguousarray(spec.data).tobytes(), np.uint8)
    buffers.append(buffer)
    t.buffer = len(buffers) - 1
    return t


def build(op):
    """The flatbuffer of ``op``; tensors without data are the model's inputs."""
    buffers = [tfl.BufferT()]
    graph = tfl.SubGraphT()
    graph.tensors = [_tensor(t, i, buffers) for i, t in enumerate(op.tensors)]
    last = len(op.tensors) - 1
    graph.inputs = [i for i, t in enumerate(op.tensors[:-1]) if t.data is None]
    graph.outputs = [last]
    node = tfl.OperatorT()
    node.opcodeIndex, node.inputs, node.outputs = 0, list(range(last)), [last]
    node.builtinOptionsType, node.builtinOptions = op.options_type, op.options
    graph.operators = [node]
    code = tfl.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = op.code, min(op.code, 127), 3
    model = tfl.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(op, *inputs):
    """Output of TensorFlow Lite Micro's interpreter."""
    interpreter = runtime.Interpreter.from_bytes(build(op))
    for i, x in enumerate(inputs):
        interpreter.set_input(x, i)
    interpreter.invoke()
    return interpreter.get_output(0)
