"""Variants that a user measured, as a file: bottlenecks, entropy coders, accuracy on compressed pictures."""

import math
from dataclasses import dataclass

import msgspec

from device_profiles.measurement import ProfileError
from split.plan import PlanError
from split.plan_problem import Cost, Encoder
from split.plan_variants import Bottleneck

MAX_VARIANT_BYTES = 1 << 20


@dataclass(frozen=True)
class PlaceFactors:
    """What a place makes of the times of a variant.

    Attributes:
        time: Factor on them, where they were measured on another board.
        spread: p95 of the whole network there, in medians; of times that have no p95 of their own.
    """

    time: float = 1.0
    spread: float = 1.0

    def cost(self, p50_ms: float, p95_ms: float | None) -> Cost:
        """Of a part that was measured as this."""
        return Cost(self.time * p50_ms, self.time * (self.spread * p50_ms if p95_ms is None else p95_ms))


_AS_MEASURED = PlaceFactors()


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that crosses a file here."""


class BottleneckEntry(_Data, frozen=True, kw_only=True):
    """One trained bottleneck at one rate, as `headtail eval` and `headtail profile` measured it. Times in ms."""

    name: str
    head_ms: float
    tail_ms: float
    payload_bytes: int
    head_p95_ms: float | None = None  # null: as many medians as the whole network's there
    tail_p95_ms: float | None = None
    accuracy: float | None = None
    weight_bytes: int | None = None  # null is not known: it then fits no memory limit
    peak_bytes: int | None = None
    exit_share: float = 0.0
    build: tuple[str, ...] = ()
    artefact: str | None = None  # route key of the head: first 16 digits of its cut id, `headtail inspect` shows it
    layers: int = 0  # of its stream that are sent, the first ones; 0 for all

    def bottleneck(self, *, device: PlaceFactors = _AS_MEASURED, host: PlaceFactors = _AS_MEASURED) -> Bottleneck:
        """As the planner takes it.

        Args:
            device: Where the head runs.
            host: Where the tail runs.

        Raises:
            ProfileError: A time that is not finite, negative, or a p95 below the median.
        """
        head, tail = device.cost(self.head_ms, self.head_p95_ms), host.cost(self.tail_ms, self.tail_p95_ms)
        return Bottleneck(
            self.name, head, tail, self.payload_bytes, self.accuracy, self.weight_bytes, self.peak_bytes,
            exit_share=self.exit_share, build=self.build, artefact=self.artefact,
            layers=self.layers,
        )  # fmt: skip


class EncoderEntry(_Data, frozen=True, kw_only=True):
    """A measured coder of crossing tensors, see `Encoder`."""

    name: str
    bytes_per_value: float
    encode_ms_per_byte: float = 0.0
    decode_ms_per_byte: float = 0.0
    accuracy_drop: float | None = 0.0
    fixed_bytes: int = 0

    def encoder(self) -> Encoder:
        """As the planner takes it.

        Raises:
            ProfileError: A figure out of range.
        """
        return Encoder(**msgspec.structs.asdict(self))


class PictureAccuracy(_Data, frozen=True, kw_only=True):
    """Accuracy of the whole network on pictures of one codec and quality."""

    codec: str
    quality: int
    accuracy: float


class VariantFile(_Data, frozen=True, kw_only=True):
    """Everything beside raw cuts and the whole model.

    `measured_on` is the board on which all times were taken; null: heads on the plan's device, tails on its host.
    """

    measured_on: str | None = None
    accuracy: float | None = None  # of the whole network, on the same pictures

    bottlenecks: tuple[BottleneckEntry, ...] = ()
    encoders: tuple[EncoderEntry, ...] = ()
    pictures: tuple[PictureAccuracy, ...] = ()

    def qualities(self) -> tuple[tuple[str, int], ...]:
        """Codecs and qualities whose accuracy is known."""
        return tuple((one.codec, one.quality) for one in self.pictures)

    def picture_accuracy(self, codec: str, quality: int | None) -> float | None:
        """Null where it was not measured."""
        found = (one.accuracy for one in self.pictures if (one.codec, one.quality) == (codec, quality))
        return next(found, None)


def parse_variants(data: bytes) -> VariantFile:
    """Decode and check.

    Raises:
        PlanError: Too large, not JSON, an unknown field, or an accuracy or size out of range.
        ProfileError: Times out of range.
    """
    if len(data) > MAX_VARIANT_BYTES:
        raise PlanError(f"Wanted variants of at most {MAX_VARIANT_BYTES} B, found {len(data)} B.")
    try:
        found = msgspec.json.decode(data, type=VariantFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"Wanted the fields of a variant file, found: {error}. docs/planning.md lists them.") from error
    known = [one.accuracy for one in found.pictures]
    known += [one.accuracy for one in found.bottlenecks if one.accuracy is not None]
    known += [] if found.accuracy is None else [found.accuracy]
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in known):
        raise PlanError(f"Wanted accuracies of 0 to 1, found {known}.")
    for entry in found.bottlenecks:
        try:
            entry.bottleneck()
        except ProfileError as error:
            raise ProfileError(f"{error} These are of the bottleneck {entry.name!r}: measure it again.") from error
    for coder in found.encoders:
        coder.encoder()
    return found
