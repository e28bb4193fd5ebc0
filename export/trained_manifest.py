"""What the manifests of a trained pair say, whichever file format head and tail have."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from device_profiles.version import __version__
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Cut,
    EarlyExit,
    Engine,
    Licence,
    Manifest,
    ModelInfo,
    Postprocessing,
    Preprocessing,
    TensorSpec,
    Tool,
    make_cut_id,
)
from export.assemble import LABELS_FILE
from export.cache import tool_versions
from export.calibration import tensors_sha256
from export.cut_check import Runner
from export.cut_golden import GoldenRule, GoldenSet, make_golden
from export.exit_graph import EXIT
from export.head_graph import LATENT
from export.late_training import TrainedExit
from export.tail_graph import LOGITS, TailPrecision

PairEngine = Literal["onnxruntime", "litert"]
FILES: dict[str, str] = {"onnxruntime": "model.onnx", "litert": "model.tflite", "tflite-micro": "model.tflite"}
HEAD_STEPS = 1.0  # another processor's int8 kernels may round a latent the other way
_PACKAGES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}
_GOLDEN = 3
_FLOAT_RELATIVE = 1e-3  # of the largest logit: what another processor's kernels may differ by
_COARSE_RELATIVE = 5e-2  # the same with fp16 or int8


@dataclass(frozen=True, kw_only=True)
class TrainedPairOptions:
    """How a trained network is written.

    Attributes:
        out: Folders `head` and `tail` are made in it.
        name: Of the model.
        source_sha256: Of the network that the bottleneck was put into, 64 hex digits.
        preprocessing: How pictures become the input: what training did to them.
        head_target: Board of the head.
        tail_target: Board of the tail.
        tail_engine: What runs the tail.
        tail_precision: Of the tail's weights and, for int8, activations.
        labels: One name for each class.
        licences: Of weights and training pictures.
        data: What the calibration pictures are called.
        fallback: Id of a whole network that the device runs when the tail does not answer.
    """

    out: Path
    name: str
    source_sha256: str
    preprocessing: Preprocessing
    head_target: str = "this"
    tail_target: str = "this"
    tail_engine: PairEngine = "onnxruntime"
    tail_precision: TailPrecision = "fp32"
    labels: tuple[str, ...] = ()
    licences: tuple[Licence, ...] = ()
    data: str = "calibration pictures"
    fallback: str | None = None


@dataclass(frozen=True)
class Parts:
    """The bytes of a pair, and what was used to make it.

    Attributes:
        head: Its file.
        tail: Its file.
        tables: The entropy coder's.
        pictures: Of calibration, as the head takes them.
        latents: What the head makes of them.
        leaving: The head's exit, if it has one.
    """

    head: bytes
    tail: bytes
    tables: bytes
    pictures: Sequence[np.ndarray]
    latents: Sequence[np.ndarray]
    leaving: TrainedExit | None = None


@dataclass(frozen=True)
class Half:
    """One file on its engine, and how it runs here: its inputs to its outputs, in the manifest's order."""

    engine: Engine
    run: Runner

    @property
    def entry(self) -> str:
        """Name of the file."""
        return FILES[self.engine.name]


def pair_engine(name: PairEngine) -> Engine:
    """An engine as it is installed here."""
    built = version(_PACKAGES[name])
    return Engine(name=name, built=built, tested=(built,))


def make_cut(parts: Parts, layout: Literal["nchw", "nhwc"]) -> Cut:
    """Where head and tail of a trained pair meet: int8 latents, entropy coded."""
    latent = TensorSpec(
        name=LATENT,
        engine_name=LATENT,
        dtype="int8",
        shape=parts.latents[0].shape,
        layout=layout,
        semantic="latent",
    )
    digest = sha256(parts.tables).hexdigest()
    cut_id = make_cut_id(
        head_sha256=sha256(parts.head).hexdigest(), tensors=(latent,), codec="rans", tables_sha256=digest
    )
    return Cut(cut_id=cut_id, tensors=(latent,), codec="rans", tables_sha256=digest)


def head_manifest(
    parts: Parts, image: TensorSpec, cut: Cut, options: TrainedPairOptions, half: Half, *, calibrated: str
) -> Manifest:
    """The head's manifest without golden vectors.

    Args:
        parts: The pair.
        image: The head's input.
        cut: From `make_cut`.
        options: Names and boards.
        half: The head's engine.
        calibrated: How ranges were chosen.
    """
    digest = tensors_sha256([[one] for one in parts.pictures])
    return msgspec.structs.replace(
        base_manifest(options, half),
        role="head",
        target=options.head_target,
        inputs=(image,),
        outputs=(*cut.tensors, *_exit_specs(parts)),
        preprocessing=options.preprocessing,
        calibration=Calibration(method=calibrated, source=options.data, count=len(parts.pictures), sha256=digest),
        fallback=options.fallback,
        cut=cut,
        early_exit=_early_exit(parts),
    )


def head_golden(parts: Parts, half: Half, rule: GoldenRule) -> GoldenSet:
    """Pictures and what the head gives for them."""
    return make_golden([([one], half.run([one])) for one in parts.pictures[:_GOLDEN]], rule)


def tail_files(
    parts: Parts, cut: Cut, options: TrainedPairOptions, half: Half, logits: TensorSpec
) -> tuple[Manifest, dict[str, bytes | Path]]:
    """The tail's manifest and files.

    Args:
        parts: The pair.
        cut: From `make_cut`.
        options: Names and boards.
        half: The tail's engine.
        logits: The tail's output.
    """
    golden = tail_golden(parts.latents, options, half, logits)
    outputs = (msgspec.structs.replace(logits, name=LOGITS, engine_name=LOGITS, semantic="logits"),)
    manifest = msgspec.structs.replace(
        tail_manifest(cut, outputs, golden, options, half),
        postprocessing=Postprocessing(kind="softmax-top-k", labels=LABELS_FILE if options.labels else None),
    )
    labels = {LABELS_FILE: ("\n".join(options.labels) + "\n").encode()} if options.labels else {}
    return manifest, {half.entry: parts.tail, TABLES_NAME: parts.tables, **golden.files, **labels}


def tail_manifest(
    cut: Cut, outputs: tuple[TensorSpec, ...], golden: GoldenSet, options: TrainedPairOptions, half: Half
) -> Manifest:
    """Of a tail with these outputs that accepts the frames of a head's cut."""
    return msgspec.structs.replace(
        base_manifest(options, half),
        role="tail",
        target=options.tail_target,
        precision=options.tail_precision,
        inputs=cut.tensors,
        outputs=outputs,
        golden=golden.vectors,
        cut=msgspec.structs.replace(cut, cut_id=None, accepts=(str(cut.cut_id),)),
    )


def tail_golden(latents: Sequence[np.ndarray], options: TrainedPairOptions, half: Half, first: TensorSpec) -> GoldenSet:
    """Integers and what the tail gives for them; `first` is the first of its outputs."""
    results = [([latent], half.run([latent])) for latent in latents[:_GOLDEN]]
    return make_golden(results, GoldenRule("absolute", _tolerance(results, options, first), produced_on(half.engine)))


def produced_on(engine: Engine) -> str:
    """What made golden vectors here."""
    return f"{engine.name} {engine.built} {platform.machine()}"


def _tolerance(
    results: Sequence[tuple[list[np.ndarray], list[np.ndarray]]], options: TrainedPairOptions, logits: TensorSpec
) -> float:
    """What another processor's kernels may differ by: a share of the largest logit, or a step of integers."""
    largest = max(float(np.abs(one).max()) for _, outputs in results for one in outputs)
    relative = _FLOAT_RELATIVE if options.tail_precision == "fp32" else _COARSE_RELATIVE
    return relative * largest if logits.quantisation is None else max(HEAD_STEPS, relative * largest)


def _exit_specs(parts: Parts) -> tuple[TensorSpec, ...]:
    if parts.leaving is None:
        return ()
    shape = (1, parts.leaving.classifier.classes)
    return (TensorSpec(name=EXIT, engine_name=EXIT, dtype="float32", shape=shape, semantic="logits"),)


def _early_exit(parts: Parts) -> EarlyExit | msgspec.UnsetType:
    if parts.leaving is None:
        return msgspec.UNSET
    policy = parts.leaving.policy
    return EarlyExit(output=EXIT, temperature=policy.temperature, threshold=policy.threshold)


def base_manifest(options: TrainedPairOptions, half: Half) -> Manifest:
    """What head and tails share."""
    return Manifest(
        schema=SCHEMA_VERSION,
        tool=Tool(name="headtail", version=__version__, packages=tool_versions()),
        model=ModelInfo(name=options.name, source_sha256=options.source_sha256),
        role="head",
        target="",
        precision="int8",
        engine=half.engine,
        entry=half.entry,
        inputs=(),
        outputs=(),
        files=(),
        licences=options.licences,
    )
