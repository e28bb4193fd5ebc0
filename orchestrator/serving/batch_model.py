"""Give an exported model a batch dimension, and prove on its golden vectors that batches change no answer.

Artefacts hold batch 1. The batch size of an ONNX model becomes free by renaming the first dimension of its inputs and
outputs; whether every operator in between agrees is found by running it, never assumed.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from edge_runtime.artefact import Artefact
from edge_runtime.backends.onnxrt import session_options
from edge_runtime.session import Session

log = logging.getLogger(__name__)

Batch = Callable[[Sequence[Sequence[np.ndarray]]], list[list[np.ndarray]]]


def open_batched(artefact: Artefact, single: Session, *, limit: int, threads: int | None = None) -> Batch | None:
    """A function that runs several requests at once; null, with a line in the log, where the model does not allow it.

    Args:
        artefact: Checked by `open_artefact`.
        single: Its session for one request.
        limit: Largest batch.
        threads: Of the engine; the manifest's number when null.
    """
    manifest = artefact.manifest
    name = manifest.model.name
    if manifest.engine.name != "onnxruntime":
        log.warning("%s is served one request at a time: batches need onnxruntime", name)
        return None
    count = manifest.engine.threads if threads is None else threads
    options = session_options(manifest.engine.optimisation, count)
    try:
        model = free_batch(onnx.load(str(artefact.entry)))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        run = _runner(
            session, [spec.engine_name for spec in manifest.inputs], [s.engine_name for s in manifest.outputs]
        )
        difference = prove(artefact, single, run, limit)
    except Exception as error:  # whatever onnx or onnxruntime raise: the model then runs as it was exported
        log.warning("%s is served one request at a time: %s", name, str(error)[:300])
        return None
    if difference is not None:
        log.warning("%s is served one request at a time: a batch differs by %g", name, difference)
        return None
    return run


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the first dimension of inputs and outputs free, also where a Reshape holds it as a constant."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == 1:
            dims[0].dim_param = "batch"
    del graph.value_info[:]
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name not in shapes:
            continue
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size and shape[0] == 1:
            shape[0] = 0  # of the input (Reshape, ONNX operator set 5 and later)
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    return model


def prove(artefact: Artefact, single: Session, run: Batch, limit: int) -> float | None:
    """The largest difference between batches and single runs above what the golden vectors allow; null when none is."""
    manifest = artefact.manifest
    random = np.random.default_rng(0)
    requests = [
        [
            np.fromfile(artefact.path(path), spec.dtype).reshape(spec.shape)
            for path, spec in zip(golden.inputs, manifest.inputs, strict=True)
        ]
        for golden in manifest.golden
    ]
    # Other neighbours in the batch: the golden values in another order.
    requests += [[random.permuted(array.reshape(-1)).reshape(array.shape) for array in requests[0]]] * 2
    requests = (requests * limit)[:limit]
    exact = any(golden.compare == "exact" for golden in manifest.golden)
    tolerance = 0.0 if exact else max(golden.tolerance for golden in manifest.golden)
    worst = 0.0
    for size in {2, limit}:
        for inputs, outputs in zip(requests[:size], run(requests[:size]), strict=True):
            for wanted, found in zip(single.run(inputs), outputs, strict=True):
                if wanted.shape != found.shape:
                    return float("inf")
                difference = np.abs(wanted.astype(np.float64) - found.astype(np.float64))
                worst = max(worst, float(difference.max(initial=0.0)))
    return None if worst <= tolerance else worst


def _runner(session: ort.InferenceSession, inputs: list[str], outputs: list[str]) -> Batch:
    lock = threading.Lock()

    def run(requests: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        feeds = {name: np.concatenate([request[i] for request in requests]) for i, name in enumerate(inputs)}
        with lock:
            results = session.run(outputs, feeds)
        return [[np.ascontiguousarray(result[i : i + 1]) for result in results] for i in range(len(requests))]

    return run
