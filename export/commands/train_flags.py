"""The words of `headtail split` that train a bottleneck; imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from device_profiles.errors import EdgeError


class TrainingUsageError(EdgeError):
    """Words of the command that say no training: no method, layer or data, no duration, or words of a cut among them."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Options of `headtail split` that train a bottleneck.

    Attributes:
        method: Train a bottleneck: bottlefit, entropic, slim, progressive, klt, ...; MODEL is module:function then.
        layer: The last layer that the bottleneck replaces; a wrong name lists those that fit.
        data: Training pictures: a folder with one folder for each class, an .npz, or module:function.
        test_data: Pictures to measure on; every fifth training picture is held out by default.
        val_data: Pictures that choose an exit's threshold and the epoch of --refine; every tenth training picture by default.
        exit: Give the head an early exit: where it is sure, the answer is there and nothing is sent.
        refine: Fine-tune the tail's last layers on the quantised head's integers, so many passes.
        time_budget: For training: 90s, 5m, 1h30m. The result is what was reached then.
        dry_run: Say what training will take, and stop.
        epochs: Of the method's stages, as 10,10.
        batch: Pictures for each step.
        beta: Weight of the bytes, where the method has one: more for fewer bytes.
        channels: Of the latent.
        set: More options of the method, as name=value; a wrong name lists them.
        size: Height and width in pixels; the network's own by default.
        label_key: Array of an .npz that holds the class ids.
        seed: Of everything that is random.
        strict: A damaged picture is an error; otherwise it is skipped and counted.
        augment: flip repeats pictures, so that the teacher runs once for each; crop and resized do not. mixed is resized with other
            colours and blended pictures, learned from the teacher alone: for few pictures.
        device: cuda or cpu; what is there by default.
        tail_precision: Of the tail.
        head_engine: What runs the head; a microcontroller's is LiteRT's. LiteRT heads are int8 .tflite files.
        tail_engine: What runs the tail; the head's by default, so that head and tail equal the unsplit network on one engine.
        codecs: Compare with JPEG and WebP in the report.
    """

    method: str | None = None
    layer: str | None = None
    data: str | None = None
    test_data: str | None = None
    val_data: str | None = None
    exit: bool = False
    refine: int = 0
    time_budget: str | None = None
    dry_run: bool = False
    epochs: str | None = None
    batch: int | None = None
    beta: float | None = None
    channels: int | None = None
    set: tuple[str, ...] = ()
    size: int = 0
    label_key: str = ""
    seed: int = 0
    strict: bool = False
    augment: Literal["none", "flip", "crop", "resized", "mixed"] = "flip"
    device: str = ""
    tail_precision: Literal["fp32", "fp16", "int8"] = "fp32"
    head_engine: Literal["onnxruntime", "litert"] | None = None
    tail_engine: Literal["onnxruntime", "litert"] | None = None
    codecs: bool = True


def trains(training: TrainFlags, cutting: Mapping[str, bool]) -> bool:
    """Whether a bottleneck is to be trained.

    Args:
        training: The words of a training.
        cutting: Words that cut an exported network, and whether they were given.

    Raises:
        TrainingUsageError: Words of the one with the other, which would mean nothing.
    """
    if training.method is None:
        words = [one.name for one in fields(training) if getattr(training, one.name) != one.default]
        if words:
            raise TrainingUsageError(
                f"Wanted --method with {', '.join('--' + one.replace('_', '-') for one in words)}, which train a bottleneck, found none. "
                "Name one (klt works before any training), or leave these out."
            )
        return False
    words = [word for word, given in cutting.items() if given]
    if words:
        raise TrainingUsageError(
            f"Wanted --method {training.method} with words of a training, found {', '.join(words)}, which cut an exported network. "
            "Leave these out."
        )
    return True
