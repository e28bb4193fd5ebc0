"""All trainable bottlenecks by name: their options, how they are made and trained, and how their integers are coded.

One entry is all that a command or a study needs to know of a method; `options_from` turns words of a command line into
options.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import msgspec
import msgspec.inspect

from split.bottlefit import BottleFit, BottleFitOptions, Decoder, bottlefit_stages
from split.bottleneck import Bottleneck, BottleneckError
from split.codebook import Codebook
from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
from split.inject import CutLayer, check_front
from split.klt import Klt, KltOptions, klt_stages
from split.losses import TASK, TaskLoss
from split.positions import Positions
from split.slim import Slim
from split.slim_stages import (
    CodebookOptions,
    PositionsOptions,
    ProgressiveOptions,
    SlimOptions,
    slim_stages,
)
from split.stages import Stage

Options = TypeVar("Options")


class MethodError(BottleneckError):
    """No such method, or options that it does not have."""


@dataclass(frozen=True)
class Method(Generic[Options]):
    """A trainable bottleneck.

    Attributes:
        name: On the command line.
        summary: One line.
        options: Frozen dataclass; all fields have defaults. Its docstring says what each is.
        make: The bottleneck for a layer, with new weights.
        stages: The recipe.
        fitted: Works before training: all layers up to the cut stay, and what is new is computed from pictures.
    """

    name: str
    summary: str
    options: type[Options]
    make: Callable[[CutLayer, Options], Bottleneck]
    stages: Callable[[Options], tuple[Stage, ...]]
    fitted: bool = False

    def front(self, options: Options, layer: str) -> str:
        """The last layer that the head keeps of a network that is cut behind `layer`, as `inject` takes it; "" for none."""
        return layer if self.fitted else str(getattr(options, "front", ""))


@dataclass(frozen=True)
class BottleFitSettings:
    """BottleFit as published.

    Attributes:
        channels: Of the latent.
        version: 1, 2 or 3: after how many convolutions the cut lies.
        decoder: resnet, or densenet (halves the resolution once more).
        width: Channels of the decoder; 0 for as many as the layer has (resnet) or twice that.
        bits: Of each integer of the latent, 2 to 8; published are 8. Fewer bits with more channels are fewer bytes.
        rounds: The decoder learns from integers of so many bits; published is to round after training alone.
        front: The last of the network's own first layers that the head keeps in place of its own, with their training; published is
            a new head.
        epochs: Of the stages features and task.
        batch: Pictures for each step.
        task: Loss of the second stage; kind kd, ce or balanced.
        task_lr: Learning rate of the second stage.
        fix_encoder: The second stage leaves the head as it is, so that it may serve several tails.
    """

    channels: int = 12
    version: int = 2
    decoder: Decoder = "resnet"
    width: int = 0
    bits: int = 8
    rounds: bool = False
    front: str = ""
    epochs: tuple[int, int] = (10, 10)
    batch: int = 64
    task: TaskLoss = TASK
    task_lr: float = 1e-3
    fix_encoder: bool = True


@dataclass(frozen=True)
class EntropicSettings:
    """Entropic Student as published.

    Attributes:
        latent_channels: Of the latent.
        beta: Weight of the bits: more for fewer bytes; belongs to one geometry.
        epochs: Of the stages features and task.
        batch: Pictures for each step.
        task: Loss of the second stage; kind kd, ce or balanced.
        task_lr: Learning rate of the second stage.
    """

    latent_channels: int = 24
    beta: float = 0.16
    epochs: tuple[int, int] = (10, 10)
    batch: int = 64
    task: TaskLoss = TASK
    task_lr: float = 1e-3


def find_method(name: str) -> Method[Any]:
    """A method by name.

    Raises:
        MethodError: There is none; the message names all.
    """
    if name not in METHODS:
        raise MethodError(f"Wanted a method, found {name!r}. There are: {', '.join(METHODS)}.")
    return METHODS[name]


def options_from(method: Method[Any], settings: Mapping[str, str]) -> Any:  # noqa: ANN401 - of the method's own type
    """Options of a method, with some fields set from text: "0.01", "true", "16,4", "prelu", and for `task` a kind.

    Raises:
        MethodError: No such field, or a text that is no value of it; the message names the fields.
    """
    known = {one.name: one for one in fields(method.options)}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise MethodError(f"Wanted options of {method.name}, found {unknown[0]!r}. There are: {', '.join(known)}.")
    types = msgspec.inspect.type_info(method.options)
    assert isinstance(types, msgspec.inspect.DataclassType)
    values: dict[str, object] = {}
    for field in types.fields:
        if field.name in settings:
            values[field.name] = _value(field.type, settings[field.name])
    try:
        given = msgspec.convert(values, method.options, strict=False)
    except msgspec.ValidationError as error:
        raise MethodError(
            f"Wanted values for the options of {method.name}, found {dict(settings)}: {error}. See its list of options."
        ) from error
    return given


def option_help(method: Method[Any]) -> dict[str, str]:
    """What each option is, with its default, for a command's help; in the order of the fields."""
    texts: dict[str, str] = {}
    for one in reversed(method.options.__mro__):
        document = inspect.getdoc(one) or ""
        if "Attributes:" in document:
            part = document.split("Attributes:")[1]
            texts |= {name: " ".join(text.split()) for name, text in re.findall(_ATTRIBUTE, part, re.S | re.M)}
    default = method.options()
    return {one.name: f"{texts.get(one.name, '')} [{_shown(getattr(default, one.name))}]" for one in fields(default)}


def _value(kind: msgspec.inspect.Type, text: str) -> object:
    if isinstance(kind, msgspec.inspect.TupleType | msgspec.inspect.VarTupleType):
        return [one for one in text.replace("(", "").replace(")", "").split(",") if one.strip()]
    if isinstance(kind, msgspec.inspect.DataclassType):  # the loss on logits
        return {"kind": text}
    return text


def _shown(value: object) -> str:
    if isinstance(value, TaskLoss):
        return value.kind
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def _make_bottlefit(layer: CutLayer, options: BottleFitSettings) -> Bottleneck:
    check_front(layer, options.front)
    form = BottleFitOptions(
        options.channels, options.version, options.decoder, layer.stride, options.width, options.bits, options.rounds
    )
    return BottleFit(layer.shape[0], form, layer.front)


def _make_entropic(layer: CutLayer, options: EntropicSettings) -> Bottleneck:
    return EntropicStudent(layer.shape[0], EntropicOptions(options.latent_channels, layer.stride))


def _bottlefit_stages(options: BottleFitSettings) -> tuple[Stage, ...]:
    return bottlefit_stages(
        epochs=options.epochs,
        batch=options.batch,
        task=options.task,
        lr=options.task_lr,
        fix_encoder=options.fix_encoder,
        front_lr=_FRONT_LR,
    )


def _entropic_stages(options: EntropicSettings) -> tuple[Stage, ...]:
    batches = (options.batch, options.batch)
    return entropic_stages(options.beta, epochs=options.epochs, batches=batches, task=options.task, lr=options.task_lr)


_FRONT_LR = 0.3  # of the new layers'
_ATTRIBUTE = r"^\s*(\w+): (.*?)(?=^\s*\w+: |\Z)"

METHODS: Mapping[str, Method[Any]] = {
    one.name: one
    for one in (
        Method(
            "bottlefit",
            "BottleFit as published: narrow convolution, 8-bit latent, no rate term",
            BottleFitSettings,
            _make_bottlefit,
            _bottlefit_stages,
        ),
        Method(
            "entropic",
            "Entropic Student as published: GDN head, learned prior, features first, then the task",
            EntropicSettings,
            _make_entropic,
            _entropic_stages,
        ),
        Method(
            "slim",
            "small ReLU head for int8, trained for the task and its bytes together: fewest bytes, fastest head",
            SlimOptions,
            Slim,
            slim_stages,
        ),
        Method(
            "progressive",
            "slim with one channel-ordered stream for all rates: any prefix of its layers decodes",
            ProgressiveOptions,
            Slim,
            slim_stages,
        ),
        Method(
            "codebook",
            "a head that sends indices of learned codebooks: fixed symbols for each place, one more 1x1 convolution",
            CodebookOptions,
            Codebook,
            slim_stages,
        ),
        Method(
            "positions",
            "a head of one strided convolution that sends a learned, fixed subset of places: least work on the device",
            PositionsOptions,
            Positions,
            slim_stages,
        ),
        Method(
            "klt",
            "the network's own layers and principal components of their output: works before any training",
            KltOptions,
            Klt,
            klt_stages,
            fitted=True,
        ),
    )
}
