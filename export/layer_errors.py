"""Where an int8 network loses precision: the SQNR of every activation against the float network."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.quiet import quiet
from export.verify import sqnr_db

WORST = 5
MAX_SAMPLES = 4  # every activation of both networks is held in memory


def onnx_layer_errors(
    fp32: bytes, int8: bytes, names: Sequence[str], samples: Iterable[list[np.ndarray]]
) -> list[tuple[str, float]]:
    """SQNR in dB of each quantised activation of an ONNX network, worst first.

    Args:
        fp32: The model that was quantised (after `prepare_for_quantisation`).
        int8: Its QDQ model.
        names: Of the inputs.
        samples: A few inputs.
    """
    from onnxruntime.quantization import CalibrationDataReader, qdq_loss_debug

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            arrays = next(self._left, None)
            return None if arrays is None else dict(zip(names, arrays, strict=True))

    samples = list(samples)
    with tempfile.TemporaryDirectory() as folder, quiet():
        seen = []
        for label, data in (("float", fp32), ("int8", int8)):
            plain, augmented = Path(folder, f"{label}.onnx"), Path(folder, f"{label}-all.onnx")
            plain.write_bytes(data)
            qdq_loss_debug.modify_model_output_intermediate_tensors(str(plain), str(augmented))
            seen.append(qdq_loss_debug.collect_activations(str(augmented), Reader()))
        matched = qdq_loss_debug.create_activation_matching(seen[1], seen[0])
        errors = qdq_loss_debug.compute_activation_error(matched)
    return sorted(((name, error["xmodel_err"]) for name, error in errors.items() if "xmodel_err" in error), key=_by_db)


def tflite_layer_errors(fp32: bytes, int8: bytes, samples: Iterable[list[np.ndarray]]) -> list[tuple[str, float]]:
    """SQNR in dB of each activation of a .tflite network, matched by tensor name, worst first.

    Args:
        fp32: The float model.
        int8: Its full-integer model.
        samples: A few float inputs in the file's order and layout.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    sums: dict[str, tuple[float, float]] = {}
    with quiet():
        kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        models = [
            Interpreter(model_content=data, experimental_preserve_all_tensors=True, experimental_op_resolver_type=kind)
            for data in (fp32, int8)
        ]
        for arrays in samples:
            exact, rounded = (_activations(model, arrays) for model in models)
            for name in exact.keys() & rounded.keys():
                if exact[name].shape == rounded[name].shape:
                    wanted = exact[name].astype(np.float64)
                    signal, noise = sums.get(name, (0.0, 0.0))
                    difference = wanted - rounded[name]
                    sums[name] = (signal + float(np.square(wanted).sum()), noise + float(np.square(difference).sum()))
    return sorted(((name, sqnr_db(*pair)) for name, pair in sums.items()), key=_by_db)


def _activations(interpreter: Any, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ANN401 - untyped
    """Every tensor after one run, as real numbers, by name; constants and bias tensors are left out."""
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        scale, zero_point = detail["quantization"]
        if scale:
            limits = np.iinfo(detail["dtype"])
            array = np.clip(np.rint(array / np.float32(scale)) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
    interpreter.invoke()
    found = {}
    for detail in interpreter.get_tensor_details():
        per_channel = len(detail["quantization_parameters"]["scales"]) > 1  # a weight
        if detail["dtype"] not in (np.float32, np.int8) or per_channel or not detail["name"]:
            continue
        try:
            array = interpreter.get_tensor(detail["index"])
        except ValueError:  # a tensor that no operator fills
            continue
        scale, zero_point = detail["quantization"]
        found[detail["name"]] = (array.astype(np.float32) - zero_point) * scale if scale else array
    return found


def _by_db(pair: tuple[str, float]) -> float:
    return pair[1]
