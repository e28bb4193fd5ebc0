"""A mesh like ours over ZeroMQ with CURVE, to compare with: one PAIR socket to every other rank, encrypted both ways.

Both ends of a connection know the other's public key. Deciding who may connect (ZAP) costs a handshake alone and is left out.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import zmq
from zmq.utils import z85

from orchestrator.tensor_parallel.collectives import sum_in_order

PORT = 7120
_TIMEOUT_MS = 30_000


class CurveMesh:
    """Sums over all ranks; `allreduce` as that of `MeshCollective`."""

    def __init__(self, rank: int, addresses: Sequence[str], secret: Path) -> None:
        self._rank, self._context = rank, zmq.Context()
        self._sockets: dict[int, Any] = {}
        private = _key(secret)
        public = zmq.curve_public(private)
        for turn in range(1, len(addresses)):
            other = (rank + turn) % len(addresses)
            address = addresses[other]
            one = self._context.socket(zmq.PAIR)
            one.curve_secretkey, one.curve_publickey = private, public
            one.setsockopt(zmq.LINGER, 0)
            one.setsockopt(zmq.RCVTIMEO, _TIMEOUT_MS)
            one.setsockopt(zmq.RECONNECT_IVL, 50)
            low, high = sorted((rank, other))
            port = PORT + 16 * low + high
            if rank == low:
                one.curve_server = True
                one.bind(f"tcp://{addresses[rank]}:{port}")
            else:
                one.curve_serverkey = public
                one.connect(f"tcp://{address}:{port}")
            self._sockets[other] = one

    def allreduce(self, partial: Any, senders: Sequence[int], shape: tuple[int, int]) -> Any:
        """The sum over `senders`, in rank order."""
        payload = partial.numpy().tobytes()
        for one in self._sockets.values():
            one.send(payload, copy=True)
        parts = {self._rank: partial}
        for rank in senders:
            if rank != self._rank:
                body = bytearray(self._sockets[rank].recv())
                parts[rank] = torch.frombuffer(body, dtype=torch.float32).view(shape)
        return sum_in_order(parts, senders)


def _key(secret: Path) -> bytes:
    """A key that whoever has the cluster's file can compute."""
    return bytes(z85.encode(hashlib.sha256(base64.b64encode(secret.read_bytes())).digest()))
