"""The graph that the cut finder works on: operators and activation tensors of a quantised network, whatever its format.

Weights are not tensors here: each node names its constants, and the graph says how large they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Quantisation
from edge_runtime.wire import MAX_RANK

MAX_NODES = 4096  # the largest int8 vision networks have about 3000 with their QuantizeLinear pairs
CROSSING_DTYPES = ("uint8", "int8", "int16")  # what may travel: integers with one scale and zero point
_BYTES = {"float32": 4, "int32": 4, "int64": 8, "float16": 2, "int16": 2, "float64": 8}


class CutGraphError(EdgeError):
    """A graph cannot be cut: it is not a well-formed, topologically ordered graph with known shapes."""


@dataclass(frozen=True)
class CutTensor:
    """One activation tensor; `shape` includes the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: Quantisation | None = None  # per tensor; null for real values and indices
    barred: str | None = None  # why it may not cross although it is quantised, in words

    @property
    def nbytes(self) -> int:
        """Size of one value of this tensor, in bytes."""
        count = _BYTES.get(self.dtype, 1)
        for size in self.shape:
            count *= size
        return count

    @property
    def obstacle(self) -> str | None:
        """Why it may not cross, in words; null when it may: the stored integers are all there is to send."""
        if self.quantisation is None or self.dtype not in CROSSING_DTYPES:
            return f"{self.dtype}, not integers with one scale"
        if not self.shape or self.shape[0] != 1 or len(self.shape) - 1 > MAX_RANK or max(self.shape) > 0xFFFF:
            return f"shape {self.shape} does not fit a frame: batch 1 and at most {MAX_RANK} sizes below 65536"
        return "it is empty" if self.nbytes == 0 else self.barred

    @property
    def may_cross(self) -> bool:
        """Whether head and tail may meet here."""
        return self.obstacle is None


@dataclass(frozen=True)
class CutNode:
    """One operator. `inputs` and `outputs` are activation tensors; `constants` are weights, biases and parameters."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int = 0  # multiply-accumulates of one run
    constants: tuple[str, ...] = ()
    repeatable: bool = False  # may run on both sides of a cut with the same result at no cost worth counting


@dataclass(frozen=True)
class CutGraph:
    """A whole network: nodes in topological order, tensors by name, constants with their size in bytes."""

    nodes: tuple[CutNode, ...]
    tensors: Mapping[str, CutTensor]
    constants: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    producers: Mapping[str, int] = field(init=False, repr=False)  # tensor name -> index of the node that makes it
    live_macs: int = field(init=False, repr=False)  # of the operators that the outputs need

    def __post_init__(self) -> None:
        object.__setattr__(self, "producers", _check(self))
        object.__setattr__(self, "live_macs", self.macs_of(self.reach_back(self.outputs)[0]))

    def reach_back(self, wanted: tuple[str, ...], *, stop: frozenset[str] = frozenset()) -> tuple[list[int], set[str]]:
        """What must run to make `wanted` from the tensors in `stop` and the graph's inputs.

        Returns:
            Indices of the nodes in topological order, and the names of the graph inputs that they read.
        """
        found: set[int] = set()
        read: set[str] = set()
        seen: set[str] = set()
        stack = list(wanted)
        while stack:
            name = stack.pop()
            if name in stop or name in seen:
                continue
            seen.add(name)
            index = self.producers.get(name)
            if index is None:
                read.add(name)
            elif index not in found:
                found.add(index)
                stack += self.nodes[index].inputs
        return sorted(found), read

    def macs_of(self, indices: list[int]) -> int:
        """Multiply-accumulates of these nodes."""
        return sum(self.nodes[index].macs for index in indices)

    def constant_bytes_of(self, indices: list[int]) -> int:
        """Bytes of the constants that these nodes use, each counted once."""
        names = {name for index in indices for name in self.nodes[index].constants}
        return sum(self.constants[name] for name in names)


def _check(graph: CutGraph) -> dict[str, int]:
    """Check names and order; return the producers."""
    if len(graph.nodes) > MAX_NODES:
        raise CutGraphError(f"Wanted a graph of at most {MAX_NODES} operators, found {len(graph.nodes)}.")
    producers: dict[str, int] = {}
    known = set(graph.inputs)
    for index, node in enumerate(graph.nodes):
        for name in node.inputs:
            if name not in known:
                raise CutGraphError(
                    f"Wanted operators in topological order, found {node.op} {node.name!r} reading {name!r} before it is made."
                )
        for name in node.constants:
            if name not in graph.constants:
                raise CutGraphError(f"Wanted the size of constant {name!r} of {node.op} {node.name!r}, found none.")
        for name in node.outputs:
            if name in known:
                raise CutGraphError(
                    f"Wanted every tensor made once, found {name!r} made again by {node.op} {node.name!r}."
                )
            known.add(name)
            producers[name] = index
    for name in known:
        tensor = graph.tensors.get(name)
        if tensor is None or any(size < 0 for size in tensor.shape):
            raise CutGraphError(f"Wanted the shape of tensor {name!r}, found {tensor.shape if tensor else 'none'}.")
    missing = [name for name in graph.outputs if name not in known]
    if missing or not graph.outputs or not graph.inputs:
        raise CutGraphError(
            f"Wanted inputs and outputs that exist, found outputs {list(graph.outputs)}, unknown {missing}."
        )
    return producers
