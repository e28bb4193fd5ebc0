"""How many requests a device may send: one token bucket each. Values in, values out; the caller reads the clock."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class FairShare:
    """One bucket for each device; those that were not seen for longest are forgotten, full as they are by then.

    Args:
        per_second: Requests that a device may send on average; 0 allows all.
        burst: Requests that it may send at once.
        devices: How many buckets are kept.
    """

    def __init__(self, per_second: float, burst: int, *, devices: int = 65_536) -> None:
        self.per_second = per_second
        self._burst = max(1.0, float(burst))
        self._devices = devices
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        """How many devices have a bucket."""
        return len(self._buckets)

    def allows(self, device: str, now: float) -> bool:
        """Take one token of the device's bucket; False when it is empty."""
        if self.per_second <= 0:
            return True
        bucket = self._buckets.get(device)
        if bucket is None:
            bucket = self._buckets[device] = _Bucket(self._burst, now)
            if len(self._buckets) > self._devices:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(device)
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self.per_second)
            bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
