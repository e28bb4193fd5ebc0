"""The nodes file: which devices there are, how strong, how much memory each gives, where they listen."""

import re
from pathlib import Path

import msgspec

from orchestrator.tensor_parallel.errors import PartitionError

_SIZE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?i?B?)\Z", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device. The first of a file is the master, which needs no address."""

    name: str
    address: str | None = None  # host:port of its `edge-agent llm-worker`
    capability: float = 1.0  # relative speed
    memory_limit: str | None = None  # "512MB"; as much as there is when not given
    read_mb_per_s: float | None = None  # memory bandwidth that a matrix-vector product reaches; for predictions
    storage_mb_per_s: float | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.memory_limit is None else parse_size(self.memory_limit)

    def host_port(self) -> tuple[str, int]:
        """Where the worker listens.

        Raises:
            PartitionError: No address, or one that is not host:port.
        """
        host, colon, port = (self.address or "").rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise PartitionError(f'Wanted address = "host:port" for node {self.name}, found {self.address!r}.')
        return host.strip("[]"), int(port)


class NodesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[node]]` tables."""

    node: tuple[Node, ...]


def read_nodes(path: Path, *, announced: bool = False) -> tuple[Node, ...]:
    """Read a nodes file (TOML).

    Args:
        path: The file.
        announced: Workers without an address announce themselves.

    Raises:
        PartitionError: None there, not valid, no node, or a name twice.
    """
    try:
        nodes = msgspec.toml.decode(path.read_bytes(), type=NodesFile).node
    except (OSError, msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise PartitionError(
            f"Wanted [[node]] tables, found {error} in {path}. See docs/tensor_parallel.md."
        ) from error
    check_nodes(nodes, str(path), announced=announced)
    return nodes


def check_nodes(nodes: tuple[Node, ...], where: str, *, announced: bool = False) -> None:
    """Check names, capabilities, limits and addresses.

    Raises:
        PartitionError: The first thing that is not valid.
    """
    names = [node.name for node in nodes]
    if not nodes or len(set(names)) != len(names):
        raise PartitionError(f"Wanted at least one node and distinct names, found {names} in {where}.")
    for node in nodes:
        if not 0 <= node.capability < float("inf"):
            raise PartitionError(f"Wanted a capability >= 0, found {node.capability} for {node.name} in {where}.")
        if node.memory_limit is not None:
            parse_size(node.memory_limit)
    if not nodes[0].capability > 0:
        raise PartitionError(f"Wanted a capability > 0 for the master {nodes[0].name}, found 0 in {where}.")
    for node in nodes[1:]:
        if node.address is not None or not announced:
            node.host_port()


def parse_size(text: str) -> int:
    """Bytes of "512MB", "1.5GiB" or a plain number.

    Raises:
        PartitionError: Not a size above 0.
    """
    match = _SIZE.match(text.strip())
    size = 0.0
    if match:
        unit = match["unit"].upper().rstrip("B")
        size = float(match["count"]) * (_BINARY[unit[0]] if unit.endswith("I") and unit != "I" else _UNITS.get(unit, 0))
    if not size >= 1:
        raise PartitionError(f"Wanted a size such as 512MB or 1.5GiB, found {text!r}.")
    return int(size)
