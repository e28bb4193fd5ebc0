"""What `headtail split` cuts: an artefact of a whole int8 network, or a bare .onnx or .tflite file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, file_sha256, open_artefact
from edge_runtime.manifest import Engine, EngineName, TensorSpec
from split.cut_graph import CutGraph
from split.cuts import Cut

_TENSORRT_REMARK = "TensorRT chooses its kernels per engine: head + tail is compared on onnxruntime, not on TensorRT."
OTHER_REMARK = (
    "Head + tail is compared on LiteRT. A head on {engine} with a tail on LiteRT can differ from either engine alone, "
    "because the two round differently."
)


class CutSourceError(EdgeError):
    """This cannot be cut: not an artefact or model file, or not a whole int8 network."""


@dataclass(frozen=True)
class CutSource:
    """A whole network that can be cut. `split` writes the bytes of head and tail."""

    path: Path  # the model file
    kind: str  # "onnx" or "tflite"
    graph: CutGraph
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: Engine
    split: Callable[[Cut], tuple[bytes, bytes]]
    checked_on: str  # engine and version that head + tail is compared on, here
    level: str = "all"  # onnxruntime's optimisation level for it
    artefact: Artefact | None = None  # null for a bare file
    remark: str | None = None  # what a user should know of these cuts

    @property
    def name(self) -> str:
        """The network's name."""
        return self.artefact.manifest.model.name if self.artefact else self.path.stem

    @property
    def sha256(self) -> str:
        """Hash of the source that the network came from."""
        return self.artefact.manifest.model.source_sha256 if self.artefact else file_sha256(self.path)


def open_cut_source(path: Path) -> CutSource:
    """Open what is to be cut.

    Args:
        path: Folder or .zip of an artefact, or an .onnx or .tflite file.

    Raises:
        CutSourceError: Neither, or a head, a tail, or not int8.
        ArtefactError, ManifestError, IntegrityError: The artefact is not valid.
        SourceError, OnnxCutError, TfliteCutError, CutGraphError: The model file cannot be cut.
    """
    if path.suffix in (".onnx", ".tflite") and path.is_file():
        source = _open_file(path, None)
    elif path.suffix == ".pt" or ":" in path.name:
        raise CutSourceError(
            f"Wanted an exported, quantised network, found {str(path)!r}. Run `headtail export` first."
        )
    else:
        artefact = open_artefact(path)
        manifest = artefact.manifest
        if manifest.role != "whole" or manifest.precision != "int8":
            raise CutSourceError(
                f"Wanted a whole int8 network, found a {manifest.role} of precision {manifest.precision} in {path}. "
                + (
                    "Export it with --precision int8 --calibration DIR, or retrain a bottleneck with --method."
                    if manifest.role == "whole"
                    else "Name the artefact that it was cut from."
                )
            )
        source = _open_file(artefact.entry, artefact)
    if not any(tensor.quantisation for tensor in source.graph.tensors.values()):
        raise CutSourceError(
            f"Wanted an int8 network, found no quantised tensor in {path}. "
            "Export it with --precision int8 --calibration DIR: a network is quantised first, then cut."
        )
    return source


def _open_file(path: Path, artefact: Artefact | None) -> CutSource:
    if path.suffix == ".onnx":
        return _open_onnx(path, artefact)
    if path.suffix == ".tflite":
        return _open_tflite(path, artefact)
    raise CutSourceError(f"Wanted an .onnx or .tflite network, found {path.name} in {path.parent}. Export it again.")


def _open_onnx(path: Path, artefact: Artefact | None) -> CutSource:
    import onnxruntime

    from export.cut_onnx import load_onnx, split_onnx
    from export.onnx_model import graph_inputs, tensor_specs

    network = load_onnx(path)
    where = str(path)
    engine = _engine("onnxruntime", onnxruntime.__version__, artefact)
    remark = None
    if network.optimisation != "all" and engine.name == "onnxruntime":
        engine = Engine(name="onnxruntime", built=engine.built, optimisation="basic", threads=engine.threads)
        remark = (
            "Biases are not quantised (the TensorRT form): on onnxruntime these cuts are exact at optimisation level "
            '"basic", which head and tail are written with. Export for a CPU board for the faster form.'
        )
    elif engine.name == "tensorrt":
        remark = _TENSORRT_REMARK

    def split(cut: Cut) -> tuple[bytes, bytes]:
        head, tail = split_onnx(network, cut)
        return head.SerializeToString(deterministic=True), tail.SerializeToString(deterministic=True)

    manifest = artefact.manifest if artefact else None
    return CutSource(
        path=path,
        kind="onnx",
        graph=network.graph,
        inputs=manifest.inputs if manifest else tensor_specs(graph_inputs(network.model), where=where),
        outputs=manifest.outputs if manifest else tensor_specs(network.model.graph.output, where=where),
        engine=engine,
        split=split,
        checked_on=f"onnxruntime {onnxruntime.__version__}",
        level="basic" if engine.name == "tensorrt" else engine.optimisation,
        artefact=artefact,
        remark=remark,
    )


def _open_tflite(path: Path, artefact: Artefact | None) -> CutSource:
    from importlib.metadata import version

    from export.cut_litert import load_tflite, split_tflite

    network = load_tflite(path)
    manifest = artefact.manifest if artefact else None
    installed = version("ai-edge-litert")
    engine = _engine("litert", installed, artefact)
    return CutSource(
        path=path,
        kind="tflite",
        graph=network.graph,
        inputs=manifest.inputs if manifest else network.inputs,
        outputs=manifest.outputs if manifest else network.outputs,
        engine=engine,
        split=lambda cut: split_tflite(network, cut),
        checked_on=f"ai-edge-litert {installed}",
        artefact=artefact,
        remark=None if engine.name == "litert" else OTHER_REMARK.format(engine=engine.name),
    )


def _engine(name: EngineName, installed: str, artefact: Artefact | None) -> Engine:
    return artefact.manifest.engine if artefact else Engine(name=name, built=installed, tested=(installed,))
