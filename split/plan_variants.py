"""Candidates that are given as data: bottlenecks with their rates, early exits, whole pictures, the whole model."""

import math
from dataclasses import dataclass

from device_profiles.plan_table import Choice
from edge_runtime.wire import ENVELOPE_BYTES, FIXED_BYTES
from split.plan import PlanError, local_choice
from split.plan_heads import Candidate, answer_bytes
from split.plan_problem import Cost

_FRAME_BYTES = ENVELOPE_BYTES + FIXED_BYTES + 4 + 8


@dataclass(frozen=True)
class Bottleneck:
    """One trained bottleneck at one rate. `exit_share` > 0: an early exit that ends so many requests on the device."""

    name: str
    head: Cost  # head, bottleneck and entropy coder on the device
    tail: Cost  # decoder and tail on the host
    payload_bytes: int  # mean; of a request that leaves the device
    accuracy: float | None
    weight_bytes: int | None
    peak_bytes: int | None
    exit_share: float = 0.0
    build: tuple[str, ...] = ()
    artefact: str | None = None  # route key of the head
    layers: int = 0  # of its stream that are sent; 0 for all


@dataclass(frozen=True)
class Picture:
    """The picture encoded on the device, decoded and run whole on the host. Measured sizes and times, never a guess."""

    codec: str  # jpeg, webp, raw ..
    quality: int | None
    file_bytes: int
    encode: Cost
    decode: Cost
    accuracy: float | None


def bottleneck_candidate(given: Bottleneck, answer: int) -> Candidate:
    """A bottleneck as a candidate; `answer` is the bytes of the outputs.

    Raises:
        PlanError: A size or share out of range.
    """
    if min(given.payload_bytes, given.layers) < 0 or not 0 <= given.exit_share <= 1:
        raise PlanError(f"Wanted bytes and layers >= 0 and an exit share of 0 to 1 of {given.name!r}, found {given}.")
    choice = Choice(
        name=given.name,
        kind="split",
        artefact=given.artefact,
        device_ms=given.head.p50_ms,
        device_p95_ms=given.head.p95_ms,
        host_ms=given.tail.p50_ms,
        host_p95_ms=given.tail.p95_ms,
        up_bytes=_FRAME_BYTES + given.payload_bytes,
        down_bytes=answer_bytes(answer),
        remote_share=1 - given.exit_share,
        layers=given.layers,
    )
    return Candidate(
        choice,
        "early-exit" if given.exit_share else "bottleneck",
        accuracy=given.accuracy,
        weight_bytes=given.weight_bytes,
        peak_bytes=given.peak_bytes,
        build=given.build,
    )


def picture_candidate(given: Picture, whole_on_host: Cost, answer: int, *, artefact: str | None = None) -> Candidate:
    """A picture sent to the whole model on the host; `artefact` is that model's route key.

    Raises:
        PlanError: No bytes.
    """
    if given.file_bytes <= 0:
        raise PlanError(f"Wanted a picture of some bytes, found {given.file_bytes} B of {given.codec}.")
    quality = "" if given.quality is None else f" quality {given.quality}"
    choice = Choice(
        name=f"the picture as {given.codec}{quality} to the whole model on the host",
        kind="remote",
        artefact=artefact,
        picture=f"{given.codec}:{given.quality or 0}",
        device_ms=given.encode.p50_ms,
        device_p95_ms=given.encode.p95_ms,
        host_ms=given.decode.p50_ms + whole_on_host.p50_ms,
        host_p95_ms=given.decode.p95_ms + whole_on_host.p95_ms,
        up_bytes=_FRAME_BYTES + given.file_bytes,
        down_bytes=answer_bytes(answer),
    )
    return Candidate(choice, "picture", accuracy=given.accuracy, build=("tail", "serve"))


def local_candidate(
    whole: Cost, *, accuracy: float | None, weight_bytes: int | None, peak_bytes: int | None
) -> Candidate:
    """The whole model on the device.

    Raises:
        PlanError: No time.
    """
    if math.isclose(whole.p50_ms, 0.0):
        raise PlanError(f"Wanted a time of the whole model, found {whole.p50_ms} ms.")
    choice = local_choice(whole.p50_ms, whole.p95_ms)
    return Candidate(choice, "whole", accuracy, weight_bytes, peak_bytes, build=("deploy",))
