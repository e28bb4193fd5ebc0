"""torch -> .tflite (fp32, pictures channel-last), and .tflite fp32 -> full-integer int8.

All use of litert-torch and ai-edge-quantizer is here: a private attribute of the quantizer is needed (see
`quantize_tflite`), so both are pinned exactly in the extra, and a test pins what is relied on.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import litert_torch
import numpy as np
from ai_edge_quantizer import recipe
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.utils import qsv_utils, tfl_interpreter_utils

from export.errors import ConversionError, first_line
from export.quiet import quiet
from export.source import ModelSource
from export.tflite_model import read_tflite

Range = tuple[float, float]

_THREADS = 2


def torch_to_tflite(model: ModelSource, *, channels_last_outputs: bool = False, as_it_is: bool = False) -> bytes:
    """Convert a module; inputs of rank 4 become channel-last (NHWC), outputs keep the module's order.

    Args:
        model: The module and its example input.
        channels_last_outputs: The only output becomes channel-last too.
        as_it_is: Inputs and outputs stay in the module's order.

    Returns:
        The bytes of a float .tflite file with one signature.

    Raises:
        ConversionError: The converter failed.
    """
    pictures = [index for index, example in enumerate(model.example) if example.ndim == 4 and not as_it_is]
    module: Any = model.module.eval()
    if pictures:
        module = litert_torch.to_channel_last_io(module, args=pictures, outputs=[0] if channels_last_outputs else None)
    example = tuple(
        one.permute(0, 2, 3, 1).contiguous() if index in pictures else one for index, one in enumerate(model.example)
    )
    try:
        with quiet():
            edge = litert_torch.convert(module.eval(), example)
            data: bytes = bytes(edge.model_content())
    except Exception as error:  # the converter raises classes of torch, jax and its C++ part
        raise ConversionError(
            f"Wanted {type(model.module).__name__} as .tflite, found: {first_line(error)}. "
            "torch.export must be able to trace it: avoid control flow that depends on values."
        ) from error
    read_tflite(data, where=f"the conversion of {type(model.module).__name__}")
    return data


def quantize_tflite(
    fp32: bytes,
    samples: Iterable[list[np.ndarray]],
    *,
    ranges: Mapping[str, Range] = MappingProxyType({}),
    floats: bool = False,
) -> bytes:
    """Quantise a float .tflite to int8 everywhere: weights per channel, activations, inputs and outputs.

    The quantizer's own calibration keeps a moving average of the ranges, which clips activations that calibration
    has seen (16.8 dB where min-max gives 33.4 dB on a small digit network), and has no option for another rule.
    So its calibrator is run here with the min-max rule; it wants the quantizer's recipe manager, a private attribute.

    Args:
        fp32: A float model with one signature.
        samples: Calibration inputs in the file's own order and layout, float32.
        ranges: Real values of -128 and 127 for named tensors; as calibration saw them for all others.
        floats: Whether operators without an int8 form may stay real, with integers before and behind them.

    Returns:
        The bytes of an int8 .tflite file.

    Raises:
        ConversionError: The quantizer failed, or left a float tensor.
    """
    try:
        with quiet():
            signature, names = _signature(fp32)
            quantizer = Quantizer(bytearray(fp32), recipe.static_wi8_ai8())
            calibrator = Calibrator(fp32, num_threads=_THREADS, qsv_update_func=qsv_utils.min_max_update)
            feeds = (dict(zip(names, arrays, strict=True)) for arrays in samples)
            calibrator.calibrate({signature: list(feeds)}, quantizer._recipe_manager)
            found = {**calibrator.get_model_qsvs(), **{name: _range(ends) for name, ends in ranges.items()}}
            result = quantizer.quantize(found, enable_progress_bar=False, enable_progress_report=False)
            data = bytes(result.quantized_model)
    except (ValueError, RuntimeError, TypeError, KeyError, NotImplementedError) as error:
        raise ConversionError(f"Wanted the network as int8 .tflite, found: {first_line(error)}.") from error
    real = read_tflite(data, where="the int8 conversion").float_tensors
    if real and not floats:
        raise ConversionError(
            f"Wanted no float tensor in the int8 .tflite, found {len(real)}: {list(real[:3])}. "
            "An operator has no int8 form; replace it in the module."
        )
    return data


def _signature(fp32: bytes) -> tuple[str, list[str]]:
    """The name of the only signature, and its input names in the order of the graph's inputs."""
    interpreter = tfl_interpreter_utils.create_tfl_interpreter(fp32)
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise ConversionError(
            f"Wanted a .tflite with one signature, found {sorted(signatures)}. Convert it again with one."
        )
    name = next(iter(signatures))
    runner = interpreter.get_signature_runner(name)
    by_tensor = {detail["name"]: argument for argument, detail in runner.get_input_details().items()}
    return name, [by_tensor[detail["name"]] for detail in interpreter.get_input_details()]


def _range(ends: Range) -> dict[str, np.ndarray]:
    """Ends of a range as the calibrator states them."""
    return {"min": np.array([[[[ends[0]]]]], np.float32), "max": np.array([[[[ends[1]]]]], np.float32)}
