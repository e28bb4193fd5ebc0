"""What the demo compares: ways to classify one picture, and the figures that come out of it. Pure."""

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal["local", "cut", "jpeg", "webp"]


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to classify a picture: on the device, head and tail, or an encoded picture to the host."""

    name: str
    kind: Kind
    artefact: str  # folder of the whole model (local, jpeg, webp) or of the head
    quality: int = 0  # of JPEG and WebP


class Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answered request. Times in ms."""

    strategy: str
    picture: int
    top1: int
    probability: float
    payload_bytes: int
    device_ms: float  # prepare the picture, run the head, encode
    host_ms: float  # queue, decode, tail
    rest_ms: float  # broker, link, threads: what is measured nowhere else
    total_ms: float


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the table: medians over all pictures and rounds."""

    name: str
    payload_bytes: int
    device_ms: float
    host_ms: float
    broker_ms: float  # of `rest_ms`, what is there without the emulated link
    link_ms: float  # of `rest_ms`, what the emulated link adds
    total_ms: float
    agreement: float  # share of pictures with the top-1 of the fp32 model
    count: int


def summarise(
    strategies: Sequence[Strategy], direct: Sequence[Sample], linked: Sequence[Sample], reference: str
) -> list[Row]:
    """Medians per strategy; broker and link are told apart by a run without the emulated link.

    Args:
        strategies: In the order of the table.
        direct: Samples without the emulated link.
        linked: Samples with it (the same ones when there is none).
        reference: Name of the strategy whose top-1 answers count as right.
    """
    right = {sample.picture: sample.top1 for sample in direct if sample.strategy == reference}
    rows = []
    for strategy in strategies:
        ours = [sample for sample in linked if sample.strategy == strategy.name]
        broker_ms = statistics.median(s.rest_ms for s in direct if s.strategy == strategy.name)
        rest_ms = statistics.median(s.rest_ms for s in ours)
        pictures = {sample.picture: sample.top1 for sample in ours}
        rows.append(
            Row(
                name=strategy.name,
                payload_bytes=round(statistics.median(s.payload_bytes for s in ours)),
                device_ms=statistics.median(s.device_ms for s in ours),
                host_ms=statistics.median(s.host_ms for s in ours),
                broker_ms=min(broker_ms, rest_ms),
                link_ms=max(0.0, rest_ms - broker_ms),
                total_ms=statistics.median(s.total_ms for s in ours),
                agreement=sum(top1 == right[picture] for picture, top1 in pictures.items()) / len(pictures),
                count=len(ours),
            )
        )
    return rows


def break_even_bits_per_s(local: Row, remote: Row, delay_ms: float) -> float | None:
    """The link rate above which `remote` is quicker than `local`; None when no rate is enough.

    total(remote) = device + host + broker + 2 * delay + 8 * bytes / rate, with the measured medians.

    Args:
        local: A row without payload.
        remote: A row with one.
        delay_ms: Of the link, one way.
    """
    spare_ms = local.total_ms - remote.device_ms - remote.host_ms - remote.broker_ms - 2 * delay_ms
    return None if spare_ms <= 0 else 8 * remote.payload_bytes / (spare_ms / 1000)


def total_at_rate_ms(row: Row, bits_per_s: float, delay_ms: float) -> float:
    """What one picture would take on a link of this rate: measured parts, plus twice the delay and the bytes' time."""
    if row.payload_bytes == 0:
        return row.total_ms
    return row.device_ms + row.host_ms + row.broker_ms + 2 * delay_ms + 8000 * row.payload_bytes / bits_per_s


def verdict(rows: Sequence[Row], delay_ms: float, link: str) -> str:
    """One sentence: who wins on this link and why, with the break-even rate."""
    best = min(rows, key=lambda row: row.total_ms)
    local = min((row for row in rows if row.payload_bytes == 0), key=lambda row: row.total_ms)
    remote = min((row for row in rows if row.payload_bytes > 0), key=lambda row: row.total_ms)
    if best.payload_bytes > 0:
        rate = break_even_bits_per_s(local, remote, delay_ms)
        edge = f"it wins above {rate / 1e6:.1f} Mbit/s" if rate is not None else "its lead is within the noise"
        return (
            f"On {link} '{best.name}' wins with {best.total_ms:.1f} ms, {local.total_ms - best.total_ms:.1f} ms ahead of "
            f"'{local.name}': its {best.payload_bytes} bytes cost less than the rest of the network on the device; {edge}."
        )
    rate = break_even_bits_per_s(local, remote, delay_ms)
    if rate is not None:
        edge = f"'{remote.name}' would win above {rate / 1e6:.1f} Mbit/s"
    else:
        floor_ms = remote.device_ms + remote.host_ms + remote.broker_ms + 2 * delay_ms
        edge = f"no rate is enough for '{remote.name}', which needs {floor_ms:.1f} ms even if its bytes cost nothing"
    return (
        f"On {link} '{best.name}' wins with {best.total_ms:.1f} ms against {remote.total_ms:.1f} ms of '{remote.name}', "
        f"because this device runs the whole network in less time than the link needs to carry a request; {edge}."
    )
