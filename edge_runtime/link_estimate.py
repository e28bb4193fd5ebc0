"""The link as real transfers show it: rate and round trip, smoothed over windows, and how far single transfers stray.

Values in, values out: the caller brings sizes and durations and says when a window ends.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import msgspec

from device_profiles.errors import EdgeError
from device_profiles.link import Link

_SMALL_BYTES = 512  # a transfer this small shows the round trip, not the rate
_SHOWN_MS = 1.0  # the shortest time of a small transfer that shows a rate: threads and clocks are no finer


class TransferError(EdgeError):
    """A transfer's size or duration is impossible."""


@dataclass(frozen=True)
class Transfer:
    """One request and its answer. `link_ms` is what neither device nor host account for: network, broker, threads."""

    up_bytes: int
    down_bytes: int
    link_ms: float
    answered: bool = True  # else given up after that time

    def __post_init__(self) -> None:
        if self.up_bytes < 0 or self.down_bytes < 0 or not (math.isfinite(self.link_ms) and self.link_ms > 0):
            raise TransferError(f"Wanted sizes >= 0 and a positive time, found {self}.")


@dataclass
class LinkEstimate:
    """EWMA of the rate and round trip over windows, with p95 of the excess of single transfers.

    A window whose median lies more than `step` times away from the estimate is a step of the link, not noise: the
    second such window in a row replaces the estimate. Noise of 20 % gives at most a ratio of 1.5 between two windows.
    A window of small transfers alone cannot tell a slow link from a long round trip, but the rate is at least what the last two
    such windows show; that bound goes with them.

    Args:
        start: What is assumed before anything was measured; its costs per message and byte, and its ratio of the
            rates, stay.
        weight: Of a new window, 0..1.
        step: Ratio of rates that is a step.
        history: Transfers that the p95 looks back on.
    """

    start: Link
    weight: float = 0.25
    step: float = 1.6
    history: int = 64
    _rate: float = field(init=False)
    _rtt_ms: float = field(init=False)
    _shown: deque[float] = field(init=False)  # bytes per second, of the last windows of small transfers alone
    _steps: int = field(init=False, default=0)
    _window: list[Transfer] = field(init=False, default_factory=list)
    _excess_ms: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self._rate, self._rtt_ms = self.start.up_bytes_per_s, self.start.rtt_ms
        self._excess_ms, self._shown = deque(maxlen=self.history), deque(maxlen=2)

    def add(self, transfer: Transfer) -> None:
        """One more finished transfer of this window. One that was given up counts with the time waited."""
        self._window.append(transfer)
        expected = self.link.uplink_ms(transfer.up_bytes) + self.link.downlink_ms(transfer.down_bytes)
        self._excess_ms.append(transfer.link_ms - expected)

    def saw_round_trip(self, rtt_ms: float) -> None:
        """A round trip that was seen otherwise, as by the kernel on the connection.

        Raises:
            TransferError: Not a positive time.
        """
        if not (math.isfinite(rtt_ms) and rtt_ms > 0):
            raise TransferError(f"Wanted a positive round trip, found {rtt_ms} ms.")
        self._rtt_ms += self.weight * (rtt_ms - self._rtt_ms)

    def end_window(self) -> bool:
        """Take the window into the estimate; False when nothing was transferred in it."""
        if not self._window:
            return False
        small = [one for one in self._window if one.up_bytes + one.down_bytes <= _SMALL_BYTES]
        if small:
            rtt = min(max(one.link_ms - 2 * self.start.per_message_ms, 0.0) for one in small)
            self._rtt_ms += self.weight * (rtt - self._rtt_ms)
        rates = sorted(rate for one in self._window if (rate := self._rate_of(one)) is not None)
        shown = sorted(1e3 * self._weighted(one) / max(one.link_ms, _SHOWN_MS) for one in small if one.answered)
        self._window.clear()
        if rates:
            self._take(rates[len(rates) // 2])
            self._shown.clear()
        else:
            self._shown.append(shown[len(shown) // 2] if shown else 0.0)
        return True

    @property
    def link(self) -> Link:
        """The link as estimated; `jitter_ms` is the p95 of what single transfers took beyond the estimate."""
        least = min(self._shown) if len(self._shown) == self._shown.maxlen else 0.0
        rate = max(self._rate, least)
        return msgspec.structs.replace(self.start.at_rate(rate, self._rtt_ms), jitter_ms=self.excess_p95_ms)

    @property
    def excess_p95_ms(self) -> float:
        """p95 of the excess over the last transfers, at least 0; before the first, the start's jitter."""
        if not self._excess_ms:
            return self.start.jitter_ms
        ordered = sorted(self._excess_ms)
        return max(ordered[math.ceil(0.95 * len(ordered)) - 1], 0.0)

    def _take(self, rate: float) -> None:
        is_step = not 1 / self.step < rate / self._rate < self.step
        self._steps = self._steps + 1 if is_step else 0
        if self._steps >= 2:
            self._rate, self._steps = rate, 0
            self._excess_ms.clear()  # they were measured against another link
        else:
            self._rate *= (rate / self._rate) ** self.weight  # in the logarithm: halving weighs as doubling

    def _rate_of(self, transfer: Transfer) -> float | None:
        """Rate up that explains a transfer; null for one too small to show it."""
        if transfer.up_bytes + transfer.down_bytes <= _SMALL_BYTES:
            return None
        start = self.start
        fixed = self._rtt_ms + 2 * start.per_message_ms + start.per_byte_ms * (transfer.up_bytes + transfer.down_bytes)
        moving_ms = max(transfer.link_ms - fixed, 0.05 * transfer.link_ms)  # the round trip itself may have shrunk
        return 1e3 * self._weighted(transfer) / moving_ms

    def _weighted(self, transfer: Transfer) -> float:
        """Bytes up that would take as long as both ways."""
        return transfer.up_bytes + self.start.up_bytes_per_s / self.start.down_bytes_per_s * transfer.down_bytes
