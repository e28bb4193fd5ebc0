"""fp32 ONNX -> int8 with explicit Q/DQ (for onnxruntime, or for TensorRT) and fp16.

Two int8 files exist because the engines want opposite things. onnxruntime is fast with asymmetric uint8 activations:
ReLU and ReLU6 vanish into the range of the QuantizeLinear behind them. TensorRT takes symmetric int8 alone, no zero
point and no quantised bias; onnxruntime runs such a file about 2.5 times slower.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.bias_correction import correct_biases
from export.errors import ConversionError, first_line
from export.onnx_model import clean, parse
from export.quiet import quiet
from export.ranges import Observed, best_range, observe

Scheme = Literal["u8s8", "s8s8"]

_SCHEMES: dict[Scheme, dict[str, Any]] = {
    "u8s8": {"activation_type": QuantType.QUInt8, "extra_options": {}},
    "s8s8": {
        "activation_type": QuantType.QInt8,
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # No Q/DQ between a layer and its activation: TensorRT fuses the two, and the range before ReLU6 is far
            # wider than the one behind it. Where such an output feeds another layer, that layer quantises it.
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul", "ConvTranspose"],
        },
    },
}


class _Reader(CalibrationDataReader):
    """Feeds calibration inputs one by one."""

    def __init__(self, names: tuple[str, ...], samples: Iterable[list[np.ndarray]]) -> None:
        self._names = names
        self._samples = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample by input name; null at the end."""
        arrays = next(self._samples, None)
        return None if arrays is None else dict(zip(self._names, arrays, strict=True))


def prepare_for_quantisation(fp32: bytes) -> bytes:
    """Fold constants and fuse operators, so that Q/DQ lands on what the engine will run.

    Args:
        fp32: A checked float model.

    Returns:
        The same network, optimised; equal inputs give equal bytes, so callers cache it.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(fp32)
        try:
            quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        except Exception as error:  # the library raises bare Exception for shapes that it cannot infer
            raise ConversionError(f"Wanted a graph ready for quantisation, found: {first_line(error)}.") from error
        return target.read_bytes()


def quantize_onnx(
    prepared: bytes,
    names: tuple[str, ...],
    samples: Sequence[list[np.ndarray]],
    *,
    scheme: Scheme,
    trained: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Quantise statically: weights per channel int8, activations per tensor 8 bits, biases corrected.

    Activation ranges have the least mean square error (`export.ranges`), except those of the outputs, which are never
    clipped; then the mean shift of each layer is taken off its bias (`export.bias_correction`). Measured on
    EfficientNet-Lite0, 100 pictures to calibrate, 400 others to compare with fp32, see `benchmarks/bench_export.py`.

    Args:
        prepared: From `prepare_for_quantisation`.
        names: The inputs' names, in the order of each sample.
        samples: Calibration inputs, float32.
        scheme: "u8s8" for onnxruntime, "s8s8" (symmetric, float bias) for TensorRT.
        trained: Ranges, low <= 0 <= high, of activations that were trained for int8, by name. They are taken as they are,
            and biases too, as both were learnt behind rounded weights.

    Returns:
        The bytes of a QDQ model with float inputs and outputs.

    Raises:
        ConversionError: The quantiser failed.
    """
    options = _SCHEMES[scheme]
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(prepared)
        try:
            seen = observe(prepared, names, samples)
            overrides = _overrides(prepared, seen, symmetric=scheme == "s8s8", kind=options["activation_type"])
            for name, (low, high) in (trained or {}).items():
                overrides[name] = [_override(options["activation_type"], low, high)]
            quantize_static(
                str(source),
                str(target),
                _Reader(names, samples[:1]),  # for tensors without a range of their own, of which there are none
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=options["activation_type"],
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={**options["extra_options"], "TensorQuantOverrides": overrides},
            )
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ConversionError(f"Wanted the network as {scheme}, found: {first_line(error)}.") from error
        model = onnx.load(str(target))
        if not trained:
            means = {name: one.mean for name, one in seen.items() if isinstance(one.mean, np.ndarray)}
            correct_biases(prepared, model, means)
        return _finish(model)


def _overrides(
    prepared: bytes, seen: dict[str, Observed], *, symmetric: bool, kind: QuantType
) -> dict[str, list[dict[str, Any]]]:
    """The range of each tensor in the quantiser's own words."""
    outputs = {value.name for value in parse(prepared).graph.output}
    found = {}
    for name, one in seen.items():
        if not one.values:
            continue
        low, high = min(one.low, 0.0), max(one.high, 0.0)
        if name not in outputs:
            low, high = best_range(one, symmetric=symmetric)
        elif symmetric:
            low, high = -max(-low, high), max(-low, high)
        if low < high:
            found[name] = [_override(kind, low, high)]
    return found


def _override(kind: QuantType, low: float, high: float) -> dict[str, Any]:
    return {"quant_type": kind, "rmin": np.float32(low), "rmax": np.float32(high)}


def halve_onnx(fp32: bytes) -> bytes:
    """Convert weights and activations to float16; inputs and outputs stay float32.

    The converter leaves nodes out of order, which the checker refuses; they are sorted again.

    Raises:
        ConversionError: The converter failed.
    """
    try:
        with quiet():
            model = convert_float_to_float16(onnx.ModelProto.FromString(fp32), keep_io_types=True)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConversionError(f"Wanted the network as fp16, found: {first_line(error)}.") from error
    wrapped = ONNXModel(model)
    wrapped.topological_sort()
    return _finish(wrapped.model)


def _finish(model: Any) -> bytes:  # noqa: ANN401 - onnx.ModelProto
    clean(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
