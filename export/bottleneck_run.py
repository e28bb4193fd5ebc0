"""`train_bottleneck`: a trained network and pictures become a pair of artefacts, the whole network, and a report."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from device_profiles import load_board
from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact
from edge_runtime.manifest import Preprocessing, Quality
from export.evaluation import Evaluation, EvaluationOptions, evaluate_pairs
from export.labelled import hold_out, open_labelled
from export.late_training import LateTraining
from export.modules import from_model, load_module
from export.pipeline import export_model
from export.request import ExportOptions
from export.source import ModelSource, Source, SourceError, find_source
from export.tail_graph import TailPrecision
from export.trained_manifest import PairEngine, TrainedPairOptions
from export.trained_pair import TrainedPair, augmentation_of, state_quality, write_trained_pair
from export.training_preprocessing import training_preprocessing
from split.augment import Augmentation
from split.checkpoint import make_folder, replace_file
from split.distill import Progress, StageSteps, TrainOptions, train
from split.early_exit import ExitOptions
from split.inject import SplitNetwork, Teacher, inject, trace_network
from split.methods import find_method, options_from
from split.processes import device_name
from split.refine import RefineOptions
from split.stages import Stage
from split.training_data import DataOptions, PictureSet

_RUN = "run"  # folder of checkpoint and metrics
_SKIPPED = "skipped.txt"
_VALIDATION_EVERY = 10
_COLOUR = 0.3  # by how much "mixed" changes brightness, contrast and saturation


class BottleneckRunError(EdgeError):
    """A bottleneck cannot be trained as asked: another size than the network's, or no training process of this run."""


@dataclass(frozen=True, kw_only=True)
class BottleneckOptions:
    """What to train, on what, for how long, and where the result goes.

    Attributes:
        method: See `split.methods.METHODS`.
        layer: The last layer that the bottleneck replaces.
        data: Training pictures: a folder by class, an .npz, or module:function.
        test_data: Pictures to measure on; every fifth training picture is held out when null.
        out: Folders run, head, tail, whole and the report are made in it.
        settings: The method's options as text: {"beta": "0.02"}.
        size: Height and width in pixels; 0 for the network's own.
        label_key: Array of an .npz that holds the class ids.
        strict: A damaged picture is an error; otherwise it is skipped.
        seed: Of new weights, order, augmentation.
        augmentation: "flip" repeats pictures, so that the teacher runs once for each; "crop" and "resized" do not. "mixed" are
            resized crops with other colours, half of them blended with another picture: for few pictures. As no label is true
            of a blend, the losses are the teacher's alone then.
        time_budget_s: For training; null for all epochs.
        device: "cuda", "cpu", or "" for what is there.
        target: Board of the head.
        tail_target: Board of the tail.
        tail_precision: Of the tail.
        head_engine: What runs the head; null for the first that the board has.
        tail_engine: What runs the tail; null for the head's, so that one engine can compute the unsplit network.
        val_data: Pictures that choose what is trained behind the finished head; every tenth training picture is held out
            when null and something is.
        refine: Passes over the training pictures in which the tail's last layers are fine-tuned on the quantised head's
            integers; 0 for none.
        early_exit: Whether the head gets an exit that answers where it is sure.
        codec_qualities: Whether the report compares with JPEG and WebP.
        on_step: Told about training.
        say: Told what comes next.
    """

    method: str
    layer: str
    data: str
    test_data: str | None = None
    out: Path = Path("pair")
    settings: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    label_key: str = ""
    strict: bool = False
    seed: int = 0
    augmentation: Literal["none", "flip", "crop", "resized", "mixed"] = "flip"
    time_budget_s: float | None = None
    device: str = ""
    target: str = "this"
    tail_target: str = "this"
    tail_precision: TailPrecision = "fp32"
    head_engine: PairEngine | None = None
    tail_engine: PairEngine | None = None
    val_data: str | None = None
    refine: int = 0
    early_exit: bool = False
    codec_qualities: bool = True
    on_step: Callable[[Progress], None] | None = field(default=None, compare=False, repr=False)
    say: Callable[[str], None] = field(default=lambda _: None, compare=False, repr=False)


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs; nothing has been trained or written yet."""

    source: Source
    model: ModelSource
    preprocessing: Preprocessing
    student: SplitNetwork
    teacher: Teacher
    train_data: PictureSet
    val_data: PictureSet | None
    test_data: PictureSet
    stages: tuple[Stage, ...]
    options: TrainOptions


@dataclass(frozen=True)
class TrainedBottleneck:
    """What was made. Null in processes of torchrun that only trained."""

    pair: TrainedPair
    whole: Artefact
    evaluation: Evaluation
    training: tuple[StageSteps, ...]


def train_bottleneck(model: str | ModelSource, options: BottleneckOptions) -> TrainedBottleneck | None:
    """Train a bottleneck and write head, tail, whole network and report: what `headtail split --method` does.

    A run that was killed continues when it is started again with the same options.

    Args:
        model: `module:function`, or a network in memory.
        options: See `BottleneckOptions`.

    Returns:
        The artefacts and what was measured; null in all but the first process of torchrun.

    Raises:
        EdgeError: A subclass for each reason; see docs/bottlenecks.md.
    """
    ready = prepare(model, options)
    _list_skipped(ready, options)
    options.say(f"Training {options.method} behind {options.layer} on {len(ready.train_data)} pictures")
    trained = train(ready.student, ready.teacher, ready.train_data, ready.stages, ready.options)
    if int(os.environ.get("RANK", "0")):
        return None
    options.say("Quantising the head, counting tables, writing head and tail")
    pair = _write(ready, options)
    network = replace(ready.model, preprocessing=ready.preprocessing)
    whole = export_model(network, "this", ExportOptions(precision="fp32"), out=options.out / "whole")
    options.say(f"Measuring on {len(ready.test_data)} pictures")
    found = evaluate_pairs(
        {options.method: (pair.head, pair.tail)},
        whole,
        ready.test_data,
        EvaluationOptions(data=options.test_data or f"every fifth of {options.data}", codecs=options.codec_qualities),
    )
    pair = state_quality(pair, _quality(found, options, ready.test_data))
    return TrainedBottleneck(pair, whole, found, trained.stages)


def _list_skipped(ready: Prepared, options: BottleneckOptions) -> None:
    """Names of all damaged pictures in a file of the run; a warning has only the first."""
    sets = (ready.train_data, ready.val_data, ready.test_data)
    names = list(dict.fromkeys(name for one in sets if one is not None for name in one.skipped))
    if not names or int(os.environ.get("RANK", "0")):
        return
    make_folder(options.out / _RUN)
    path = options.out / _RUN / _SKIPPED
    replace_file(path, "".join(f"{name}\n" for name in names).encode())
    options.say(f"{len(names)} damaged pictures were skipped; {path} names them")


def _write(ready: Prepared, options: BottleneckOptions) -> TrainedPair:
    board = load_board(options.target)
    naming = TrainedPairOptions(
        out=options.out,
        name=ready.source.name,
        source_sha256=ready.source.sha256,
        preprocessing=ready.preprocessing,
        head_target=board.id,
        tail_target=load_board(options.tail_target).id,
        tail_engine=engines_of_pair(options)[1],
        tail_precision=options.tail_precision,
        labels=ready.model.labels,
        licences=ready.model.licences,
        data=Path(options.data).name,
    )
    late = late_training(ready, options)
    if engines_of_pair(options)[0] == "onnxruntime":
        return write_trained_pair(ready.student, ready.train_data, naming, late)
    from export.litert_pair import write_litert_pair  # LiteRT's converters are an extra of their own

    mcu = board if board.is_microcontroller else None
    return write_litert_pair(ready.student, ready.train_data, naming, late, mcu)


def engines_of_pair(options: BottleneckOptions) -> tuple[PairEngine, PairEngine]:
    """What runs head and tail; a microcontroller's head is LiteRT's, whose kernels its C repeats.

    Raises:
        BottleneckRunError: An engine that the head's board does not have, or a precision that the tail's does not have.
    """
    board = load_board(options.target)
    if board.is_microcontroller:
        if options.head_engine == "onnxruntime":
            raise BottleneckRunError(
                f"Wanted a LiteRT head for the microcontroller {board.id}, found --head-engine onnxruntime. Leave it out."
            )
        head: PairEngine = "litert"
    else:
        head = options.head_engine or "onnxruntime"
    tail = options.tail_engine or head
    if tail == "litert" and options.tail_precision == "fp16":
        raise BottleneckRunError(
            "Wanted fp32 or int8 for a tail on LiteRT, found fp16. Pass one of them as --tail-precision, or --tail-engine "
            "onnxruntime."
        )
    return head, tail


def late_training(ready: Prepared, options: BottleneckOptions) -> LateTraining | None:
    """What is trained behind the finished head; null for nothing."""
    if ready.val_data is None:
        return None
    return LateTraining(
        train=ready.train_data,
        validation=ready.val_data,
        teacher=ready.teacher,
        refine=RefineOptions(epochs=options.refine, seed=options.seed) if options.refine else None,
        exit=ExitOptions(seed=options.seed) if options.early_exit else None,
        augmentation=replace(
            ready.options.augmentation, kind="crop", padding=ready.options.augmentation.size // 10, mixes=False
        ),
        say=options.say,
    )


def prepare(model: str | ModelSource, options: BottleneckOptions) -> Prepared:
    """Load network and pictures and put the bottleneck in; every error of a user's input is raised here.

    Raises:
        EdgeError: As `train_bottleneck`, but for those of training and writing.
    """
    method = find_method(options.method)
    _check(options)
    settings = options_from(method, options.settings)
    source = _load(model)
    network = source.model
    if network is None:
        raise SourceError(f"Wanted a network in memory, found only its name {source.text!r}.")
    preprocessing = training_preprocessing(network, options.size)
    example = torch.zeros(1, *network.example[0].shape[1:])
    if options.size:
        example = torch.zeros(1, 3, options.size, options.size)
        network = replace(network, example=(example,))
    trace = trace_network(network.module, example)
    torch.manual_seed(options.seed)
    student, teacher = inject(  # before pictures are read, which may take long
        trace,
        options.layer,
        lambda at: method.make(at, settings),
        size=preprocessing.crop,
        front=method.front(settings, options.layer),
    )
    with torch.no_grad():
        classes = network.module(example).shape[1]
    stages = _recipe(method.stages(settings), options)
    data_options = DataOptions(
        preprocessing.resize_short or preprocessing.crop[0],
        label_key=options.label_key,
        strict=options.strict,
        classes=classes,
    )
    data = open_labelled(options.data, data_options, network.labels)
    if options.test_data is None:
        data, test = _held_out(data, options.data)
    else:
        test = open_labelled(options.test_data, data_options, network.labels)
    data, val = _validation(data, data_options, network.labels, options)
    plain = augmentation_of(preprocessing)
    training = TrainOptions(
        folder=options.out / _RUN,
        augmentation=_varied(plain, options),
        seed=options.seed,
        time_budget_s=options.time_budget_s,
        device=options.device,
        on_step=options.on_step,
    )
    return Prepared(source, network, preprocessing, student, teacher, data, val, test, stages, training)


def _check(options: BottleneckOptions) -> None:
    """What needs neither the network nor pictures to be refused."""
    engines_of_pair(options)
    device_name(options.device)
    if options.size < 0:
        raise BottleneckRunError(
            f"Wanted a height and width in pixels, or 0 for the network's own, found --size {options.size}."
        )
    if options.refine < 0:
        raise BottleneckRunError(
            f"Wanted passes to refine the tail in, or 0 for none, found --refine {options.refine}."
        )


def _held_out(data: PictureSet, source: str) -> tuple[PictureSet, PictureSet]:
    """Pictures to train on, and every fifth of each class."""
    rest, test = hold_out(data)
    if not len(test):
        raise BottleneckRunError(
            f"Wanted a class with five pictures or more, every fifth to measure on, found none in {source}. Give more, or others "
            "as --test-data."
        )
    return rest, test


def _varied(plain: Augmentation, options: BottleneckOptions) -> Augmentation:
    """How training pictures are varied."""
    if options.augmentation == "mixed":
        return replace(plain, kind="resized", colour=_COLOUR, mixes=True)
    return replace(plain, kind=options.augmentation)


def _recipe(stages: tuple[Stage, ...], options: BottleneckOptions) -> tuple[Stage, ...]:
    """The stages of the method; for blended pictures without the labels."""
    if options.augmentation != "mixed":
        return stages
    return tuple(one if one.task is None else replace(one, task=replace(one.task, alpha=0.0)) for one in stages)


def _validation(
    data: PictureSet, data_options: DataOptions, labels: tuple[str, ...], options: BottleneckOptions
) -> tuple[PictureSet, PictureSet | None]:
    """Training pictures, and those that choose; null where nothing has to be chosen.

    Raises:
        BottleneckRunError: Something to choose for a microcontroller, or validation pictures for nothing.
    """
    late = options.early_exit or options.refine > 0
    if not late and options.val_data is not None:
        raise BottleneckRunError(
            f"Wanted validation pictures for an early exit or a refined tail, found {options.val_data} and neither. "
            "Give --exit or --refine too."
        )
    if not late:
        return data, None
    if options.early_exit and load_board(options.target).is_microcontroller:
        raise BottleneckRunError(
            f"Wanted an early exit behind a head on onnxruntime or LiteRT, found the microcontroller {options.target}. "
            "Leave --exit out."
        )
    if options.val_data is not None:
        return data, open_labelled(options.val_data, data_options, labels)
    data, val = hold_out(data, _VALIDATION_EVERY)
    if not len(val):
        raise BottleneckRunError(
            f"Wanted {_VALIDATION_EVERY} pictures of a class, to hold one out for validation, found fewer. Give --val-data."
        )
    return data, val


def _load(model: str | ModelSource) -> Source:
    if isinstance(model, ModelSource):
        return from_model(model)
    source = find_source(model)
    if source.kind != "torch":
        raise SourceError(
            f"Wanted module:function, which returns a network that can be trained, found the file {source.text}. "
            "A bottleneck is trained before the export."
        )
    return load_module(source)


def _quality(found: Evaluation, options: BottleneckOptions, data: PictureSet) -> Quality:
    ours = next(one for one in found.ways if one.kind == "pair")
    whole = next(one for one in found.ways if one.kind == "whole")
    return Quality(
        metric="top-1",
        reference=whole.accuracy,
        this=ours.accuracy,
        drop=ours.loss,
        agreement=None,
        sqnr_db=None,
        data=Path(options.test_data or f"held out of {options.data}").name,
        data_sha256=found.data_sha256,
        count=found.pictures,
    )
