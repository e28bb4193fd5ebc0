"""The search finds exactly the Pareto front that enumerating all paths gives."""

from hypothesis import given
from hypothesis import strategies as st

from split.patch_plan import EdgeKind
from split.patch_search import Edge, search, tidy

POSITIONS = 4


@st.composite
def edge_lists(draw):
    edges = [
        Edge(EdgeKind.LAYER, i, i + 1, (1, 1), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 1) for i in range(4)
    ]
    for _ in range(draw(st.integers(0, 6))):
        first = draw(st.integers(0, POSITIONS - 1))
        stop = draw(st.integers(first + 1, POSITIONS))
        size, macs, runs = (draw(st.integers(1, 20)) for _ in range(3))
        edges.append(Edge(EdgeKind.STREAM, first, stop, (1, 1), size, macs, runs))
    return list(dict.fromkeys(edges))


def all_paths(edges, position=0):
    if position == POSITIONS:
        yield ()
    for edge in edges:
        if edge.first == position:
            for rest in all_paths(edges, edge.stop):
                yield (edge, *rest)


def surcharge(edge):
    """An edge may need more than its bound once it is really placed."""
    return edge.bound_bytes + (edge.bound_bytes * 7 + edge.macs) % 3


@given(edges=edge_lists())
def test_search_returns_the_front_of_all_paths_under_their_real_sizes(edges):
    found = search(edges, POSITIONS, lambda edge, enough: surcharge(edge))
    points = {(max(map(surcharge, path)), sum(e.macs for e in path)) for path in all_paths(edges)}
    front = [
        (size, macs)
        for size, macs in sorted(points)
        if not any(s <= size and m <= macs and (s, m) != (size, macs) for s, m in points)
    ]
    assert [(path.arena_bytes, path.macs) for path in found] == front


@given(edges=edge_lists())
def test_tidying_keeps_bytes_and_macs_and_takes_the_fewest_runs(edges):
    for path in search(edges, POSITIONS, lambda edge, enough: surcharge(edge)):
        tidied = tidy(edges, POSITIONS, path, lambda edge, enough: surcharge(edge))
        assert tidied.macs == path.macs
        assert max(map(surcharge, tidied.edges)) <= path.arena_bytes
        equal = [
            sum(e.runs for e in other)
            for other in all_paths(edges)
            if max(map(surcharge, other)) <= path.arena_bytes and sum(e.macs for e in other) == path.macs
        ]
        assert sum(e.runs for e in tidied.edges) == min(equal)
