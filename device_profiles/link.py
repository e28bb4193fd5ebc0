"""A link between a device and its host: how long a message takes.

One way: x(b) = rtt / 2 + b / rate + per_message + b * per_byte. The last two are the broker and (de)serialisation, which
are measured apart from the network. A p95 adds the jitter (p95 - p50 of a round trip) once for each request.
"""

import math
import re

import msgspec

from device_profiles.errors import EdgeError

_BITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TEXT = re.compile(
    r"(?P<up>[\d.]+)(?P<up_unit>[kmg]?bit)(?::(?P<down>[\d.]+)(?P<down_unit>[kmg]?bit))?"
    r"/(?P<rtt>[\d.]+)ms(?:~(?P<jitter>[\d.]+)ms)?\Z"
)


class LinkError(EdgeError):
    """A link's figures are not valid: a rate that is not positive, a negative time, or text that is no link."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates in bytes per second, times in milliseconds."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    rtt_ms: float
    jitter_ms: float = 0.0  # p95 - p50 of a round trip
    per_message_ms: float = 0.0  # broker and framing, each message
    per_byte_ms: float = 0.0  # serialising and the broker's copying, each byte

    def __post_init__(self) -> None:
        for name in ("up_bytes_per_s", "down_bytes_per_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise LinkError(f"Wanted a positive finite {name}, found {value}.")
        for name in ("rtt_ms", "jitter_ms", "per_message_ms", "per_byte_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise LinkError(f"Wanted a finite {name} >= 0, found {value}.")

    @property
    def up_ms_per_byte(self) -> float:
        """What one more byte costs on the way up."""
        return 1e3 / self.up_bytes_per_s + self.per_byte_ms

    @property
    def down_ms_per_byte(self) -> float:
        """What one more byte costs on the way down."""
        return 1e3 / self.down_bytes_per_s + self.per_byte_ms

    def uplink_ms(self, size: float) -> float:
        """One message of `size` bytes from device to host, p50."""
        return self.rtt_ms / 2 + self.per_message_ms + size * self.up_ms_per_byte

    def downlink_ms(self, size: float) -> float:
        """One message of `size` bytes from host to device, p50."""
        return self.rtt_ms / 2 + self.per_message_ms + size * self.down_ms_per_byte

    def occupied_ms(self, size: float) -> float:
        """How long a message up keeps the link busy: what bounds throughput."""
        return self.per_message_ms + size * self.up_ms_per_byte

    def at_rate(self, up_bytes_per_s: float, rtt_ms: float | None = None) -> "Link":
        """The same link at another rate; the way down keeps its ratio to the way up."""
        ratio = self.down_bytes_per_s / self.up_bytes_per_s
        return Link(
            up_bytes_per_s=up_bytes_per_s,
            down_bytes_per_s=up_bytes_per_s * ratio,
            rtt_ms=self.rtt_ms if rtt_ms is None else rtt_ms,
            jitter_ms=self.jitter_ms,
            per_message_ms=self.per_message_ms,
            per_byte_ms=self.per_byte_ms,
        )

    def __str__(self) -> str:
        down = "" if self.down_bytes_per_s == self.up_bytes_per_s else f":{self.down_bytes_per_s * 8e-6:g}mbit"
        jitter = f"~{self.jitter_ms:g}ms" if self.jitter_ms else ""
        return f"{self.up_bytes_per_s * 8e-6:g}mbit{down}/{self.rtt_ms:g}ms{jitter}"


def parse_link(text: str, *, per_message_ms: float = 0.0, per_byte_ms: float = 0.0) -> Link:
    """Read a link as users write it: `20mbit/15ms`, with jitter `20mbit/15ms~4ms`, with another rate down `20mbit:5mbit/15ms`.

    Args:
        text: Rate up, optionally rate down, round-trip time, optionally jitter (p95 - p50).
        per_message_ms: Measured cost of the broker and framing for each message.
        per_byte_ms: Measured cost of serialising and the broker for each byte.

    Raises:
        LinkError: Not of this form, or a figure out of range.
    """
    found = _TEXT.match(text.strip().lower())
    try:
        if found is None:
            raise ValueError(text)
        up = float(found["up"]) * _BITS[found["up_unit"]] / 8
        down = float(found["down"]) * _BITS[found["down_unit"]] / 8 if found["down"] else up
        rtt_ms, jitter_ms = float(found["rtt"]), float(found["jitter"] or 0)
    except ValueError as error:
        raise LinkError(
            f"Wanted a link such as 20mbit/15ms, 20mbit:5mbit/15ms or 20mbit/15ms~4ms, found {text!r}."
        ) from error
    return Link(
        up_bytes_per_s=up,
        down_bytes_per_s=down,
        rtt_ms=rtt_ms,
        jitter_ms=jitter_ms,
        per_message_ms=per_message_ms,
        per_byte_ms=per_byte_ms,
    )
