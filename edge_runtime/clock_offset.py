"""How a round trip divides into the way up and the way down, although the clocks of device and host differ.

The host's clock is compared with ours over the exchange that was least delayed of the last ones (Cristian 1989; NTP's
clock filter, RFC 5905, section 10): least delay leaves least room for error. In that exchange half of the connection's
own round trip is taken for each way, and the rest is divided as the bytes are. No clock is read here.
"""

import math
from collections import deque
from dataclasses import dataclass

_HISTORY = 32
_MAX_AGE_S = 30.0  # clocks drift: 50 ppm are 1.5 ms in that time


@dataclass(frozen=True)
class Exchange:
    """One request and its answer. Seconds; `received_s` is of the host's clock, `sent_s` of ours."""

    sent_s: float
    received_s: float
    link_s: float  # both ways together
    up_bytes: int
    down_bytes: int


class ClockOffset:
    """Divides round trips; see the module."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Exchange, float]] = deque(maxlen=_HISTORY)

    def divide(self, exchange: Exchange, *, round_trip_s: float | None = None) -> tuple[float, float]:
        """Seconds up and down of this exchange; together they are its `link_s`.

        Args:
            exchange: The newest one.
            round_trip_s: Least round trip that the connection has seen, of small packets; null: unknown.
        """
        self._kept.append((exchange, exchange.received_s - exchange.sent_s - _expected_up_s(exchange, round_trip_s)))
        while exchange.sent_s - self._kept[0][0].sent_s > _MAX_AGE_S:
            self._kept.popleft()
        _, offset = min(self._kept, key=lambda kept: kept[0].link_s)
        up = exchange.received_s - offset - exchange.sent_s
        up = min(max(up, 0.0), exchange.link_s) if math.isfinite(up) else exchange.link_s / 2
        return up, exchange.link_s - up


def _expected_up_s(exchange: Exchange, round_trip_s: float | None) -> float:
    """What the way up takes of an exchange that nothing delayed."""
    fixed = min(round_trip_s or 0.0, exchange.link_s)
    share = exchange.up_bytes / max(exchange.up_bytes + exchange.down_bytes, 1)
    return fixed / 2 + (exchange.link_s - fixed) * share
