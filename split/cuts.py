"""Every legal cut of a quantised network into a head and a tail.

A cut is a partition of the operators into a head and a tail such that

1. the head is closed under ancestors: no tensor goes back from the tail to the head;
2. every tensor that crosses (made by the head or an input, read by the tail) holds integers with one scale and zero
   point (`CutTensor.may_cross`), so that nothing is lost by sending it; at most `MAX_TENSORS` of them cross;
3. no graph input is read by the tail, unless it is itself such a quantised tensor and crosses like any other;
4. the tail makes every graph output, and both sides have at least one operator that is not repeatable.

A repeatable operator (dequantise; anything computed from constants alone) belongs to whichever side needs it, or both,
and what it makes does not cross.
Operators that are joined by a tensor that may not cross always stay together: they form a block, and the legal heads
are the ancestor-closed sets of blocks. A head with ONE crossing tensor is a prefix of every topological order of the
blocks (each block of the head is an ancestor of that tensor, each block of the tail a descendant), so one sweep over
one order finds all of these. Heads with more tensors can be exponentially many where branches run in parallel: all
are listed while the graph has at most `MAX_HEADS` ancestor-closed sets; beyond that, the heads of the sweep and, for
each block, the smallest head that contains it and the largest that does not (`CutList.complete` is then false).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from device_profiles.errors import EdgeError
from edge_runtime.manifest import MAX_TENSORS
from edge_runtime.wire import ENVELOPE_BYTES, FIXED_BYTES
from split.cut_blocks import Blocks, build_blocks, free_nodes
from split.cut_graph import CutGraph, CutTensor

MAX_HEADS = 4096
_LAYER_BYTES = 4
_TENSOR_HEAD_BYTES = 8


class CutError(EdgeError):
    """A cut that was asked for does not exist; the message says which rule it breaks."""


@dataclass(frozen=True)
class Cut:
    """A legal cut. Tensors stand in the order in which the network makes them: the order on the wire."""

    tensors: tuple[CutTensor, ...]
    head_nodes: int  # operators in the head, repeatable ones included
    head_macs: int
    tail_macs: int
    head_bytes: int  # constants (weights, biases, parameters) that the head needs

    @property
    def names(self) -> tuple[str, ...]:
        """The crossing tensors' names."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def payload_bytes(self) -> int:
        """Raw bytes of the crossing tensors; frame and envelope are not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def wire_bytes(self) -> int:
        """Bytes of one request with the raw codec: envelope, frame with one layer, payload (docs/wire.md)."""
        frame = FIXED_BYTES + _LAYER_BYTES + _TENSOR_HEAD_BYTES * len(self.tensors) + self.payload_bytes
        return ENVELOPE_BYTES + frame


@dataclass(frozen=True)
class CutList:
    """The cuts of one graph, from the input to the output."""

    cuts: tuple[Cut, ...]
    complete: bool  # false: single-tensor cuts are all there, some with more tensors are left out

    def single(self) -> tuple[Cut, ...]:
        """The cuts with one crossing tensor."""
        return tuple(cut for cut in self.cuts if len(cut.tensors) == 1)


def find_cuts(graph: CutGraph, *, max_tensors: int = MAX_TENSORS, max_heads: int = MAX_HEADS) -> CutList:
    """List the legal cuts of a graph.

    Args:
        graph: Operators in topological order.
        max_tensors: Cuts with more crossing tensors are left out; 1 to `MAX_TENSORS`.
        max_heads: Above this many ancestor-closed sets, cuts with several tensors are a selection.

    Raises:
        CutError: `max_tensors` is out of range.
    """
    if not 1 <= max_tensors <= MAX_TENSORS:
        raise CutError(f"Wanted 1 to {MAX_TENSORS} crossing tensors, found a limit of {max_tensors}.")
    blocks = build_blocks(graph)
    heads = all_heads(blocks, max_heads) if max_tensors > 1 else None
    complete = heads is not None or max_tensors == 1
    if heads is None:
        heads = sweep_heads(blocks)
        if max_tensors > 1 and blocks.count <= max_heads:
            heads += near_heads(blocks)
    found: set[tuple[str, ...]] = set()
    for head in heads:
        both = blocks.has_work(head.mask) and blocks.has_work(blocks.everything & ~head.mask)
        if both and 1 <= len(head.crossing) <= max_tensors:
            found.add(tuple(sorted(blocks.edges[number].name for number in head.crossing)))
    cuts = [_describe(graph, names) for names in found]
    cuts.sort(key=lambda cut: (cut.head_nodes, cut.head_macs, len(cut.tensors), cut.names))
    return CutList(tuple(cuts), complete)


def cut_at(graph: CutGraph, names: Iterable[str]) -> Cut:
    """The cut at exactly these tensors.

    Raises:
        CutError: There is none; the message names the tensor and the rule.
    """
    wanted = frozenset(names)
    if not 1 <= len(wanted) <= MAX_TENSORS:
        raise CutError(f"Wanted 1 to {MAX_TENSORS} tensors to cut at, found {len(wanted)}.")
    free = free_nodes(graph)
    for name in sorted(wanted):
        tensor = graph.tensors.get(name)
        if tensor is None:
            raise CutError(f"Wanted a tensor of the network, found {name!r}. See --list for the names.")
        if tensor.obstacle is not None:
            raise CutError(
                f"Wanted a tensor of quantised integers, found {name!r} ({tensor.obstacle}). "
                "Cut at a quantised tensor near it (--list)."
            )
        if graph.producers.get(name) in free:
            raise CutError(
                f"Wanted a tensor that the head computes, found {name!r}, which both sides can make. See --list."
            )
    tail, read = graph.reach_back(graph.outputs, stop=wanted)
    if read:
        raise CutError(
            f"Wanted the tail to need {sorted(wanted)} alone, found that input {min(read)!r} reaches it past them. "
            "Add the tensors of the other branch, or see --list."
        )
    if wanted & set(graph.outputs):
        raise CutError(
            f"Wanted a tail that makes the outputs, found {sorted(wanted & set(graph.outputs))} to be outputs."
        )
    needed = {name for index in tail for name in graph.nodes[index].inputs} & wanted
    if needed != wanted:
        raise CutError(
            f"Wanted only tensors that the tail reads, found {sorted(wanted - needed)} unused. Leave them out."
        )
    head, _ = graph.reach_back(tuple(wanted))
    both = sorted(set(head) & set(tail) - free)
    if both:
        node = graph.nodes[both[0]]
        raise CutError(f"Wanted each operator on one side, found {node.op} {node.name!r} needed on both. See --list.")
    if not set(head) - free or not set(tail) - free:
        raise CutError(f"Wanted operators on both sides of {sorted(wanted)}, found one side without any.")
    return _describe(graph, tuple(wanted))


@dataclass(frozen=True)
class Head:
    """An ancestor-closed set of blocks, and the numbers of the edges that leave it."""

    mask: int
    crossing: tuple[int, ...]

    def grow(self, blocks: Blocks, block: int) -> "Head":
        """The head with one more block, all of whose predecessors it holds."""
        mask = self.mask | 1 << block
        edges = (*self.crossing, *blocks.made_by[block])
        return Head(mask, tuple(number for number in edges if blocks.edges[number].readers & ~mask))


def all_heads(blocks: Blocks, limit: int) -> list[Head] | None:
    """Every head that holds the source and not the sink; null above `limit`."""
    start = Head(0, ()).grow(blocks, blocks.source)
    ready = frozenset(b for b in blocks.successors[blocks.source] if blocks.predecessors[b] == start.mask)
    found = {start.mask: start}
    stack = [(start, ready)]
    while stack:
        head, ready = stack.pop()
        for block in ready - {blocks.sink}:
            if head.mask | 1 << block in found:
                continue
            if len(found) >= limit:
                return None
            grown = head.grow(blocks, block)
            found[grown.mask] = grown
            more = {b for b in blocks.successors[block] if not blocks.predecessors[b] & ~grown.mask}
            stack.append((grown, (ready - {block}) | more))
    return list(found.values())


def sweep_heads(blocks: Blocks) -> list[Head]:
    """The prefixes of the topological order, without the sink."""
    heads = []
    head = Head(0, ())
    for block in range(blocks.sink):
        head = head.grow(blocks, block)
        heads.append(head)
    return heads


def near_heads(blocks: Blocks) -> list[Head]:
    """For each block the smallest head that contains it and the largest that does not."""
    masks = set()
    for block in range(blocks.count):
        masks.add(blocks.ancestors[block] | 1 << block)
        masks.add(blocks.everything & ~blocks.descendants[block] & ~(1 << block))
    source, sink = 1 << blocks.source, 1 << blocks.sink
    return [Head(mask, blocks.crossing(mask)) for mask in sorted(masks) if mask & source and not mask & sink]


def _describe(graph: CutGraph, names: tuple[str, ...]) -> Cut:
    order = {name: graph.producers.get(name, -1) for name in names}
    ordered = tuple(sorted(names, key=lambda name: (order[name], name)))
    head, _ = graph.reach_back(ordered)
    head_macs = graph.macs_of(head)
    return Cut(
        tensors=tuple(graph.tensors[name] for name in ordered),
        head_nodes=len(head),
        head_macs=head_macs,
        tail_macs=graph.live_macs - head_macs,
        head_bytes=graph.constant_bytes_of(head),
    )
