"""How a device offloads, and which artefacts go together for it."""

import re
from dataclasses import dataclass

from edge_runtime.artefact import Artefact
from edge_runtime.offload import OffloadError
from edge_runtime.tracing import Tracer

_KEY = re.compile(r"[0-9a-f]{16}\Z")


@dataclass(frozen=True)
class OffloadOptions:
    """How to offload. QoS 0 is enough where a deadline covers every request.

    Raises:
        OffloadError: A negative number of layers.
    """

    tenant: str = "default"
    qos: int = 0
    deadline_ms: float = 1000.0
    in_flight: int = 8
    threads: int | None = None
    nodelay: bool = True
    breaker_failures: int = 3
    hedge_ms: float | None = None  # ask another worker as well when no answer came by then; the first answer counts
    direct_above_bytes: int = 256 << 10  # larger requests go over the direct data plane where the tail offers one
    layers: int = 0  # of a progressive stream at most so many, the first ones, are sent; 0 for all
    shadow_share: float = 0.0  # of the tail's answers that are compared with the whole model here
    tracer: Tracer | None = None  # marks a share of the requests; `tracer.finished(answer)` is the caller's to call

    def __post_init__(self) -> None:
        """Check."""
        if self.layers < 0:
            raise OffloadError(f"Wanted a number of layers, or 0 for all, found {self.layers}.")


def check_roles(head: Artefact | None, fallback: Artefact | None, key: str | None) -> None:
    """Check what an offloader is given.

    Raises:
        OffloadError: Neither head nor key, both, a key that is none, or an artefact of another role.
    """
    if (head is None) == (key is None):
        raise OffloadError("Wanted a head, or the key of a whole model on the host, found both or neither.")
    if key is not None and _KEY.match(key) is None:
        raise OffloadError(
            f"Wanted the route key of a whole model on the host, 16 hex digits in lower case, found {key!r}. It is the `key` of "
            "its artefact."
        )
    for artefact, role in ((head, "head"), (fallback, "whole")):
        if artefact is not None and artefact.manifest.role != role:
            raise OffloadError(f"Wanted a {role} artefact, found a {artefact.manifest.role} in {artefact.folder}.")
