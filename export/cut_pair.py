"""Write the two artefacts of a cut: head/ for the device and tail/ for the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np

from device_profiles import DeviceProfile, load_board
from device_profiles.version import __version__
from edge_runtime import manifest as manifests
from edge_runtime.artefact import Artefact, read_raw, write_artefact
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.manifest import (
    SCHEMA_VERSION,
    Engine,
    Manifest,
    ModelInfo,
    Postprocessing,
    TensorSpec,
    Tool,
    make_cut_id,
)
from export.cut_check import Arrays, check_cut, kept_inputs, sample_inputs
from export.cut_golden import GoldenSet, latent_rule, make_golden, output_rule
from export.cut_mcu import check_source, exact_rule, head_engine, head_files, tflm_runner
from export.cut_source import CutSource, open_cut_source
from export.cut_tables import count_latents
from export.samples import SampleSet, open_samples
from split.cut_graph import CutTensor
from split.cuts import Cut, CutList, cut_at, find_cuts

_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "tflite": ("ai-edge-litert",)}
_LICENCE_WORDS = ("LICENCE", "LICENSE", "NOTICE", "COPYING")


@dataclass(frozen=True)
class PairOptions:
    """Where a pair goes, and for which boards. `fallback` is the id of a whole network that the device holds.

    With `microcontroller`, the head's board, the head carries its C project too.
    """

    out: Path
    head_target: str
    tail_target: str
    fallback: str | None = None
    calibration: SampleSet | None = None  # given: the entropy coder carries the latents, with tables counted on it
    microcontroller: DeviceProfile | None = None
    samples: tuple[tuple[np.ndarray, ...], ...] = ()  # golden inputs; random ones, or those of the artefact, when empty


def write_pair(source: CutSource, cut: Cut, options: PairOptions) -> tuple[Artefact, Artefact]:
    """Cut, prove that nothing changed on the golden inputs, and write head and tail.

    Args:
        source: The whole network.
        cut: One of its cuts.
        options: Folders `head` and `tail` are made in `options.out`.

    Returns:
        (head, tail). The head's cut id is what the tail accepts.

    Raises:
        CutEqualityError: Head + tail gives other bytes than the unsplit network.
        ArtefactError: The folders hold something else.
    """
    if options.microcontroller is not None:
        check_source(source)
    pair = source.split(cut)
    samples = [list(sample) for sample in options.samples] or _golden_inputs(source)
    results = check_cut(source, cut, pair, samples)
    keep = kept_inputs(source, cut)
    given = [[sample[index] for index in keep] for sample in samples]
    crossing, tables = _crossing(source, cut, pair[0], options.calibration)
    found = [(arrays, latents) for arrays, (latents, _) in zip(given, results, strict=True)]
    head_golden, c_files = _head_files(source, pair[0], (crossing, tables), found, options.microcontroller)
    tail_golden = make_golden(results, output_rule(source))
    base = _base_manifest(source, crossing.tensors)
    head = msgspec.structs.replace(
        base,
        target=options.head_target,
        engine=base.engine if options.microcontroller is None else head_engine(),
        inputs=tuple(source.inputs[index] for index in keep),
        golden=head_golden.vectors,
        fallback=options.fallback,
        cut=crossing,
    )
    tail = msgspec.structs.replace(
        _tail_manifest(source, base),
        target=options.tail_target,
        golden=tail_golden.vectors,
        cut=msgspec.structs.replace(crossing, cut_id=None, accepts=(str(crossing.cut_id),)),
    )
    carried = _carried_files(source) | ({} if tables is None else {TABLES_NAME: tables})
    return (
        write_artefact(options.out / "head", head, {base.entry: pair[0], **head_golden.files, **carried, **c_files}),
        write_artefact(
            options.out / "tail", tail, {base.entry: pair[1], **tail_golden.files, **carried, **_label_files(source)}
        ),
    )


def _crossing(
    source: CutSource, cut: Cut, head: bytes, samples: SampleSet | None
) -> tuple[manifests.Cut, bytes | None]:
    """The head's cut, and the bytes of its tables where latents are entropy coded."""
    latents = tuple(_latent(source, tensor) for tensor in cut.tensors)
    crossing, tables = manifests.Cut(tensors=latents), None
    if samples is not None:
        tables = count_latents(source, cut, head, samples).data
        crossing = manifests.Cut(tensors=latents, codec="rans", tables_sha256=sha256(tables).hexdigest())
    cut_id = make_cut_id(
        head_sha256=sha256(head).hexdigest(),
        tensors=latents,
        codec=crossing.codec,
        tables_sha256=crossing.tables_sha256,
    )
    return msgspec.structs.replace(crossing, cut_id=cut_id), tables


def _head_files(
    source: CutSource,
    head: bytes,
    crossing: tuple[manifests.Cut, bytes | None],
    found: list[tuple[Arrays, Arrays]],
    board: DeviceProfile | None,
) -> tuple[GoldenSet, dict[str, bytes]]:
    """Golden vectors of the head; for a microcontroller what it must give exactly, and its C project."""
    if board is None:
        return make_golden(found, latent_rule(source)), {}
    cut, tables = crossing
    files = head_files(head, board, name=source.name, cut_id=str(cut.cut_id), tables=tables)
    run = tflm_runner(head, len(cut.tensors))
    return make_golden([(arrays, run(arrays)) for arrays, _ in found], exact_rule()), files


def _base_manifest(source: CutSource, latents: tuple[TensorSpec, ...]) -> Manifest:
    """The head's manifest without what only the caller knows; the tail's is derived from it."""
    own = source.artefact.manifest if source.artefact else None
    return Manifest(
        schema=SCHEMA_VERSION,
        tool=Tool(name="headtail", version=__version__, packages=_packages(source.kind)),
        model=own.model if own else ModelInfo(name=source.name, source_sha256=source.sha256),
        role="head",
        target="",
        precision="int8",
        engine=source.engine,
        entry=f"model.{source.kind}",
        inputs=(),
        outputs=latents,
        files=(),
        preprocessing=own.preprocessing if own else None,
        calibration=own.calibration if own else None,
        quality=own.quality if own else None,
        licences=own.licences if own else (),
    )


def _tail_manifest(source: CutSource, head: Manifest) -> Manifest:
    """The tail's manifest without what only the caller knows."""
    return msgspec.structs.replace(
        head,
        role="tail",
        engine=_tail_engine(head.engine),
        inputs=head.outputs,
        outputs=source.outputs,
        preprocessing=None,
        postprocessing=source.artefact.manifest.postprocessing if source.artefact else Postprocessing(),
    )


def list_cuts(model: Path | str) -> CutList:
    """Every legal cut of an int8 network: what `headtail split MODEL --list` shows.

    Args:
        model: An artefact of a whole int8 network, or an int8 .onnx or .tflite file.

    Raises:
        EdgeError: A subclass for each reason, see `open_cut_source`.
    """
    return find_cuts(open_cut_source(Path(model)).graph)


def cut_network(
    model: Path | str,
    at: Sequence[str],
    *,
    out: Path | str,
    fallback: Artefact | None = None,
    target: str | None = None,
    tail_target: str = "this",
    calibration: Path | str | None = None,
) -> tuple[Artefact, Artefact]:
    """Cut an int8 network in two: what `headtail split MODEL --at TENSOR` does.

    Args:
        model: An artefact of a whole int8 network, or an int8 .onnx or .tflite file.
        at: Names of the tensors to cut at, see `split.cuts.find_cuts`.
        out: Folder in which head/ and tail/ are written.
        fallback: A whole network that the device runs when the tail does not answer.
        target: Board of the head; the artefact's own by default. For a microcontroller the head is a C project too.
        tail_target: Board of the tail.
        calibration: Pictures or arrays: given, the latents travel entropy coded, with tables counted on them.

    Returns:
        (head, tail); head + tail was found equal to the network, bit for bit.

    Raises:
        CutError: There is no cut at these tensors.
        EdgeError: A subclass for each other reason, see `open_cut_source` and `write_pair`.
    """
    source = open_cut_source(Path(model))
    board = load_board(target or (source.artefact.manifest.target if source.artefact else "this"))
    options = PairOptions(
        out=Path(out),
        head_target=board.id,
        microcontroller=board if board.is_microcontroller else None,
        tail_target=load_board(tail_target).id,
        fallback=fallback.id if fallback is not None else None,
        calibration=open_samples(calibration) if calibration is not None else None,
    )
    return write_pair(source, cut_at(source.graph, at), options)


def _latent(source: CutSource, tensor: CutTensor) -> TensorSpec:
    layout = None
    if len(tensor.shape) == 4:
        layout = "nchw" if source.kind == "onnx" else "nhwc"
    return TensorSpec(
        name=tensor.name,
        engine_name=tensor.name,
        dtype=tensor.dtype,  # type: ignore[arg-type]  # one of CROSSING_DTYPES, checked by the cut finder
        shape=tensor.shape,
        layout=layout,
        semantic="latent",
        quantisation=tensor.quantisation,
    )


def _golden_inputs(source: CutSource) -> list[Arrays]:
    """Up to two golden inputs of the artefact and a random one; two random ones for a bare file."""
    if source.artefact is None:
        return sample_inputs(source.inputs, count=2)
    stored = [
        [read_raw(source.artefact, name, spec) for name, spec in zip(one.inputs, source.inputs, strict=True)]
        for one in source.artefact.manifest.golden[:2]
    ]
    return stored + sample_inputs(source.inputs, count=1, seed=1)  # an export's own random inputs have seed 0


def _packages(kind: str) -> dict[str, str]:
    found = {}
    for name in _PACKAGES[kind]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build from source may carry another name
            continue
    return found


def _tail_engine(engine: Engine) -> Engine:
    """The tail runs on a host: what a microcontroller, an old Pi or a Jetson runs has a CPU engine beside it there."""
    if engine.name in ("tflite-micro", "tflite-runtime"):
        return Engine(name="litert", built=version("ai-edge-litert"))
    if engine.name == "tensorrt":
        return Engine(name="onnxruntime", built=version("onnxruntime"), optimisation="basic")
    return engine


def _carried_files(source: CutSource) -> dict[str, bytes | Path]:
    """Licence texts of the whole network's artefact."""
    if source.artefact is None:
        return {}
    listed = source.artefact.manifest.files_by_path
    return {
        path: source.artefact.path(path)
        for path in listed
        if path.rsplit("/", 1)[-1].upper().startswith(_LICENCE_WORDS)
        or path.upper().startswith(("LICENSES/", "LICENCES/"))
    }


def _label_files(source: CutSource) -> dict[str, bytes | Path]:
    labels = source.artefact.manifest.postprocessing.labels if source.artefact else None
    return {labels: source.artefact.path(labels)} if source.artefact and labels else {}
