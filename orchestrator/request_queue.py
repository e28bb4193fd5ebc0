"""Requests that wait for a tail worker: bounded, earliest deadline first, expired ones handed back. No clock, no thread."""

import heapq

import msgspec


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


class RequestQueue:
    """A heap with a limit. `push` and `pop` say which requests must be answered with busy or expired."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[Request] = []

    def __len__(self) -> int:
        """How many wait."""
        return len(self._heap)

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

    def pop(self, now: float) -> tuple[Request | None, list[Request]]:
        """The request with the earliest deadline that is still ahead, and those whose deadline has passed."""
        expired: list[Request] = []
        while self._heap:
            request = heapq.heappop(self._heap)
            if request.deadline > now:
                return request, expired
            expired.append(request)
        return None, expired
