"""torch -> one ONNX file, fp32: exported, read back, checked, cleaned."""

import inspect

import numpy as np
import torch

from export.errors import ConversionError, first_line
from export.onnx_model import MAX_IR_VERSION, OPSET, check_contents, check_model, clean, opset_of
from export.quiet import quiet
from export.source import ModelSource, SourceError


def torch_to_onnx(model: ModelSource, *, opset: int = OPSET) -> bytes:
    """Export a module through torch.export, with fixed shapes and all weights inside.

    Args:
        model: The module and its example input.
        opset: What is asked for; the exporter can silently keep another one, so it is read back.

    Returns:
        The bytes of an ONNX file: IR at most `MAX_IR_VERSION`, no metadata, no local path.

    Raises:
        ConversionError: The exporter failed, or gave another opset or IR than was asked for.
    """
    module = model.module.eval()
    names = input_names(model)
    outputs = output_names(model)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                model.example,
                dynamo=True,
                opset_version=opset,
                external_data=False,
                input_names=list(names),
                output_names=list(outputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConversionError(
            f"Wanted {type(module).__name__} as ONNX, found: {first_line(error)}. "
            "torch.export must be able to trace it: avoid control flow that depends on values."
        ) from error
    proto = program.model_proto
    found = opset_of(proto)
    if found != opset:
        raise ConversionError(
            f"Wanted ONNX opset {opset}, found {found}: the exporter could not convert. Ask for {OPSET}."
        )
    if proto.ir_version > MAX_IR_VERSION:
        raise ConversionError(
            f"Wanted ONNX IR {MAX_IR_VERSION} or older, found {proto.ir_version}. Use an older onnxscript."
        )
    clean(proto)
    where = f"the export of {type(module).__name__}"
    check_contents(proto, where=where)
    check_model(proto, where=where)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def run_torch(model: ModelSource, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Run the module as it is: the reference of every conversion.

    Args:
        model: The module.
        arrays: One array for each input, shaped like the example.

    Returns:
        One array for each output.

    Raises:
        SourceError: It returns something other than tensors.
    """
    with torch.no_grad():
        result = model.module.eval()(*(torch.from_numpy(array) for array in arrays))
    return [tensor.numpy() for tensor in _as_tensors(result)]


def input_names(model: ModelSource) -> tuple[str, ...]:
    """The names of the inputs: given, or the parameter names of `forward`."""
    if model.input_names:
        names = model.input_names
    else:
        parameters = [
            one.name
            for one in inspect.signature(model.module.forward).parameters.values()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        names = tuple(parameters[: len(model.example)])
        if len(names) < len(model.example):
            names = tuple(f"input_{index}" for index in range(len(model.example)))
    if len(names) != len(model.example):
        raise SourceError(f"Wanted {len(model.example)} input names, found {list(names)}.")
    return names


def output_names(model: ModelSource) -> tuple[str, ...]:
    """The names of the outputs: given, or "logits" for one (batch, classes) tensor, else "output"."""
    with torch.no_grad():
        outputs = _as_tensors(model.module.eval()(*model.example))
    if model.output_names:
        if len(model.output_names) != len(outputs):
            raise SourceError(f"Wanted {len(outputs)} output names, found {list(model.output_names)}.")
        return model.output_names
    if len(outputs) == 1:
        return ("logits" if outputs[0].ndim == 2 and model.task == "classification" else "output",)
    return tuple(f"output_{index}" for index in range(len(outputs)))


def _as_tensors(result: object) -> tuple[torch.Tensor, ...]:
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, tuple | list) and result and all(isinstance(one, torch.Tensor) for one in result):
        return tuple(result)
    raise SourceError(
        f"Wanted a tensor or a tuple of tensors from the module, found {type(result).__name__}. "
        "Wrap it in a module whose forward returns tensors."
    )
