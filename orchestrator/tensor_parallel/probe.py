"""Round trip and rate of the links to the workers, measured before the model is divided."""

import time
from collections.abc import Mapping

from orchestrator.tensor_parallel.choice import Measured
from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.peer_link import Link, receive_control, send_control
from orchestrator.tensor_parallel.protocol import Measure

_TRIPS = 5
_BULK_BYTES = 256 << 10


def measure_links(links: Mapping[int, Link], *, one_machine: bool, timeout_s: float) -> Measured:
    """The longest round trip and the lowest rate.

    Raises:
        PeerError: A worker left or answered something else.
    """
    rtt_s, rate = 0.0, float("inf")
    for link in links.values():
        trip = min(_round_trip(link, "", timeout_s) for _ in range(_TRIPS))
        bulk = min(_round_trip(link, "x" * _BULK_BYTES, timeout_s) for _ in range(2))
        rtt_s, rate = max(rtt_s, trip), min(rate, _BULK_BYTES / max(bulk - trip, 1e-6))
    return Measured(1e3 * rtt_s, rate, one_machine)


def _round_trip(link: Link, data: str, timeout_s: float) -> float:
    began = time.perf_counter()
    send_control(link, Measure(data=data), timeout_s=timeout_s)
    if not isinstance(receive_control(link, timeout_s=timeout_s), Measure):
        raise PeerError(f"Wanted {link.peer} to answer a measurement, found another message.")
    return time.perf_counter() - began
