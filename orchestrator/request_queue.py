"""Requests that wait for a tail worker: bounded, earliest deadline first, hopeless ones handed back. No clock, no thread."""

import heapq
from collections.abc import Mapping

import msgspec

_NOTHING: Mapping[str, float] = {}


class Request(msgspec.Struct, frozen=True, order=True):
    """One request as it came in. Times are seconds of a monotonic clock; ordered by deadline, then arrival (`order` is unique)."""

    deadline: float
    order: int
    received: float
    request_id: bytes
    frame: memoryview
    reply_topic: str
    key: str
    qos: int
    traced: bool = False
    peer: bytes | None = None  # who asked on the direct data plane; null: over MQTT


class RequestQueue:
    """A heap with a limit. `push` and `take` say which requests must be answered with busy or expired."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[Request] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._heap)

    @property
    def first(self) -> Request | None:
        """The request with the earliest deadline; null when none waits."""
        return self._heap[0] if self._heap else None

    def count(self, key: str) -> int:
        """How many wait for one model."""
        return sum(request.key == key for request in self._heap)

    def push(self, request: Request) -> Request | None:
        """Add a request; returns the one that has to go when the queue is full: that with the latest deadline."""
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, request)
            return None
        latest = max(self._heap)
        if request >= latest:
            return request
        self._heap.remove(latest)
        heapq.heapify(self._heap)
        heapq.heappush(self._heap, request)
        return latest

    def take(
        self, now: float, *, limit: int = 1, needs_s: Mapping[str, float] = _NOTHING
    ) -> tuple[list[Request], list[Request]]:
        """The most urgent request that can still be answered in time, with others for the same model.

        Args:
            now: Seconds.
            limit: Largest number of requests to run together.
            needs_s: How long a model needs, by key; a request with less time than that is hopeless.

        Returns:
            The batch, empty when nothing waits; and the hopeless requests that were met on the way.
        """
        batch: list[Request] = []
        hopeless: list[Request] = []
        others: list[Request] = []
        while self._heap and len(batch) < limit:
            request = heapq.heappop(self._heap)
            if request.deadline <= now + needs_s.get(request.key, 0.0):
                hopeless.append(request)
            elif not batch or request.key == batch[0].key:
                batch.append(request)
            else:
                others.append(request)
        for request in others:
            heapq.heappush(self._heap, request)
        return batch, hopeless


def batch_due_at(first: Request, *, wait_s: float, needs_s: float) -> float:
    """Until when a batch may wait for more requests.

    No longer than a quarter of its most urgent request's budget, nor so long that the model could not run in what is left.
    """
    patience_s = min(wait_s, 0.25 * (first.deadline - first.received))
    return min(first.received + patience_s, first.deadline - 2 * needs_s)
