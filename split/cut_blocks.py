"""Operators that no cut can separate, merged into blocks: an acyclic graph in which every edge may be cut.

Sets of blocks are bit masks (Python integers): bit i stands for block i, and blocks are numbered in topological order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from split.cut_graph import CutGraph


@dataclass(frozen=True)
class Edge:
    """A tensor that may cross, the block that makes it and the mask of the blocks that read it."""

    name: str
    maker: int
    readers: int


@dataclass(frozen=True)
class Blocks:
    """The block graph. Block `source` (the first) holds the inputs: in every head; `sink` (the last) the outputs: in none.

    Where both are the same block, nothing can be cut.
    """

    count: int
    source: int
    sink: int
    everything: int  # mask of all blocks
    working: int  # mask of the blocks with at least one operator that is not repeatable
    predecessors: tuple[int, ...]  # masks
    successors: tuple[frozenset[int], ...]
    ancestors: tuple[int, ...]  # masks, the block itself left out
    descendants: tuple[int, ...]
    edges: tuple[Edge, ...]
    made_by: tuple[tuple[int, ...], ...]  # numbers of the edges that each block makes
    members: tuple[tuple[int, ...], ...]  # indices of the operators of each block, repeatable ones left out

    def has_work(self, mask: int) -> bool:
        """Whether some block of the set has an operator that is not repeatable."""
        return bool(mask & self.working)

    def crossing(self, head: int) -> tuple[int, ...]:
        """Numbers of the edges that leave this head."""
        return tuple(
            number for number, edge in enumerate(self.edges) if head >> edge.maker & 1 and edge.readers & ~head
        )


def free_nodes(graph: CutGraph) -> frozenset[int]:
    """Nodes that may stand on both sides: marked repeatable, or computed without any graph input."""
    fed = set(graph.inputs)
    free = set()
    for index, node in enumerate(graph.nodes):
        if any(name in fed for name in node.inputs):
            fed.update(node.outputs)
            if node.repeatable:
                free.add(index)
        else:
            free.add(index)
    return frozenset(free)


def build_blocks(graph: CutGraph) -> Blocks:
    """Merge the operators that are joined by tensors that may not cross, and whatever then lies on a cycle.

    Operators that no output needs are left out. Time is linear in operators plus edges, times the mask length.
    """
    free = free_nodes(graph)
    live, _ = graph.reach_back(graph.outputs)
    real = [index for index in live if index not in free]
    source, sink = len(graph.nodes), len(graph.nodes) + 1
    readers = _readers(graph, real, free, sink)
    forward: dict[int, set[int]] = {index: set() for index in [source, *real, sink]}
    crossing: list[tuple[str, int, set[int]]] = []
    for name, found in readers.items():
        maker = graph.producers.get(name, source)
        forward[maker] |= found
        if graph.tensors[name].may_cross and name not in graph.outputs:
            crossing.append((name, maker, found))
        else:  # neither side of a tensor that may not cross can be without the other
            for reader in found:
                forward[reader].add(maker)
    block_of = _components(forward, source)
    return _assemble(block_of, forward, crossing, frozenset(real), (source, sink))


def _readers(graph: CutGraph, real: list[int], free: frozenset[int], sink: int) -> dict[str, set[int]]:
    """For each tensor that a real operator or an input makes: who reads it, seen through repeatable operators."""
    origins: dict[str, frozenset[str]] = {name: frozenset((name,)) for name in graph.inputs}
    for index, node in enumerate(graph.nodes):
        if index in free:
            through = frozenset().union(*(origins[name] for name in node.inputs))
            origins.update(dict.fromkeys(node.outputs, through))
        else:
            origins.update({name: frozenset((name,)) for name in node.outputs})
    readers: dict[str, set[int]] = {}
    for index in real:
        for name in graph.nodes[index].inputs:
            for origin in origins[name]:
                readers.setdefault(origin, set()).add(index)
    for name in graph.outputs:
        for origin in origins[name]:
            readers.setdefault(origin, set()).add(sink)
    return readers


def _components(forward: dict[int, set[int]], root: int) -> dict[int, int]:
    """Strongly connected components (Tarjan 1972, without recursion), numbered in topological order."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    component: dict[int, int] = {}
    count = 0
    for start in [root, *forward]:
        if start in order:
            continue
        work: list[tuple[int, Iterator[int]]] = [(start, iter(sorted(forward[start])))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, rest = work[-1]
            step = next((one for one in rest if one not in order or one in on_stack), None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component[member] = count
                        if member == node:
                            break
                    count += 1
            elif step in order:
                low[node] = min(low[node], order[step])
            else:
                order[step] = low[step] = len(order)
                stack.append(step)
                on_stack.add(step)
                work.append((step, iter(sorted(forward[step]))))
    return {node: count - 1 - number for node, number in component.items()}


def _assemble(
    block_of: dict[int, int],
    forward: dict[int, set[int]],
    crossing: list[tuple[str, int, set[int]]],
    real: frozenset[int],
    ends: tuple[int, int],
) -> Blocks:
    count = max(block_of.values()) + 1
    predecessors = [0] * count
    successors: list[set[int]] = [set() for _ in range(count)]
    members: list[list[int]] = [[] for _ in range(count)]
    working = 0
    for node, following in forward.items():
        own = block_of[node]
        if node in real:
            working |= 1 << own
            members[own].append(node)
        for other in following:
            if block_of[other] != own:
                predecessors[block_of[other]] |= 1 << own
                successors[own].add(block_of[other])
    ancestors, descendants = [0] * count, [0] * count
    for block in range(count):
        for other in successors[block]:
            ancestors[other] |= ancestors[block] | 1 << block
    for block in reversed(range(count)):
        for other in successors[block]:
            descendants[block] |= descendants[other] | 1 << other
    edges: list[Edge] = []
    made_by: list[list[int]] = [[] for _ in range(count)]
    for name, maker, readers in crossing:
        mask = 0
        for reader in readers:
            mask |= 1 << block_of[reader]
        made_by[block_of[maker]].append(len(edges))
        edges.append(Edge(name, block_of[maker], mask))
    return Blocks(
        count=count,
        source=block_of[ends[0]],
        sink=block_of[ends[1]],
        everything=(1 << count) - 1,
        working=working,
        predecessors=tuple(predecessors),
        successors=tuple(frozenset(one) for one in successors),
        ancestors=tuple(ancestors),
        descendants=tuple(descendants),
        edges=tuple(edges),
        made_by=tuple(tuple(one) for one in made_by),
        members=tuple(tuple(sorted(one)) for one in members),
    )
