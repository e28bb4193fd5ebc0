from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.manifest import Quantisation
from split.cut_blocks import free_nodes
from split.cut_graph import CutGraph, CutGraphError, CutNode, CutTensor
from split.cuts import CutError, cut_at, find_cuts

STEP = Quantisation(scale=0.5, zero_point=3)


def _graph(nodes, *, real=(), outputs=("y",), inputs=("x",), quantised_input=False, shape=(1, 4)):
    """Every tensor holds quantised integers, except the inputs and those in `real`."""
    names = [*inputs, *(name for node in nodes for name in node.outputs)]
    plain = set(real) | (set() if quantised_input else set(inputs))
    tensors = {
        name: CutTensor(name, shape, "float32") if name in plain else CutTensor(name, shape, "uint8", STEP)
        for name in names
    }
    constants = {name: 10 for node in nodes for name in node.constants}
    return CutGraph(tuple(nodes), tensors, constants, tuple(inputs), tuple(outputs))


def _node(name, inputs, outputs=None, **more):
    return CutNode(name, "op", tuple(inputs.split()), tuple((outputs or name).split()), **more)


@st.composite
def graphs(draw):
    """Small random networks: some tensors real, some operators repeatable or without inputs, sometimes two outputs."""
    count = draw(st.integers(2, 7))
    names, nodes = ["x"], []
    for index in range(count):
        size = draw(st.integers(0 if index else 1, 3))
        reads = (
            draw(st.lists(st.sampled_from(names), min_size=min(1, size), max_size=size, unique=True)) if size else []
        )
        nodes.append(_node(f"t{index}", " ".join(reads), macs=1, repeatable=draw(st.booleans()) and bool(reads)))
        names.append(f"t{index}")
    real = draw(st.sets(st.sampled_from(names)))
    outputs = tuple(dict.fromkeys([names[-1], *draw(st.lists(st.sampled_from(names[1:]), max_size=1))]))
    return _graph(nodes, real=real, outputs=outputs, quantised_input=draw(st.booleans()))


def _all_legal(graph, limit):
    """Every set of tensors that `cut_at` takes, by trying all of them."""
    found = set()
    for size in range(1, limit + 1):
        for names in combinations(sorted(graph.tensors), size):
            try:
                found.add(frozenset(cut_at(graph, names).names))
            except CutError:
                continue
    return found


@settings(max_examples=300, deadline=None)
@given(graph=graphs())
def test_the_list_holds_exactly_the_legal_cuts(graph):
    found = find_cuts(graph)
    assert found.complete
    assert {frozenset(cut.names) for cut in found.cuts} == _all_legal(graph, 8)


@settings(max_examples=100, deadline=None)
@given(graph=graphs())
def test_above_the_limit_all_single_cuts_stay_and_the_rest_is_a_selection(graph):
    everything, some = find_cuts(graph), find_cuts(graph, max_heads=1)
    assert some.single() == everything.single() == find_cuts(graph, max_tensors=1).cuts
    assert set(some.cuts) <= set(everything.cuts)


@settings(max_examples=200, deadline=None)
@given(graph=graphs())
def test_every_cut_is_a_partition_that_obeys_the_rules(graph):
    free = free_nodes(graph)
    for cut in find_cuts(graph).cuts:
        tail, read = graph.reach_back(graph.outputs, stop=frozenset(cut.names))
        head, _ = graph.reach_back(cut.names)
        assert len(head) == cut.head_nodes
        assert not read
        assert all(tensor.may_cross for tensor in cut.tensors)
        assert not set(head) & set(tail) - free
        assert set(head) - free
        assert set(tail) - free
        assert cut.head_macs == len(head)
        assert cut.head_macs + cut.tail_macs == graph.live_macs


def test_a_residual_block_is_cut_with_the_skip_beside_the_branch():
    graph = _graph(
        [_node("a", "x"), _node("b", "a"), _node("c", "b"), _node("add", "a c"), _node("y", "add")], outputs=("y",)
    )
    assert [cut.names for cut in find_cuts(graph).cuts] == [("a",), ("a", "b"), ("a", "c"), ("add",)]


def test_a_real_tensor_never_crosses_and_a_dequantiser_is_shared():
    nodes = [
        _node("q", "x"),
        _node("d", "q", repeatable=True),
        _node("left", "d"),
        _node("right", "d"),
        _node("y", "left right"),
    ]
    graph = _graph(nodes, real=("d", "y"))
    cuts = find_cuts(graph).cuts
    assert [cut.names for cut in cuts] == [("q",), ("q", "left"), ("q", "right"), ("left", "right")]
    with pytest.raises(CutError, match="float32, not integers"):
        cut_at(graph, ["d"])


def test_a_quantised_input_may_cross_beside_another_tensor():
    graph = _graph([_node("a", "x"), _node("y", "a x")], quantised_input=True)
    assert [cut.names for cut in find_cuts(graph).cuts] == [("x", "a")]


def test_wide_graphs_stay_fast_and_say_that_the_list_is_a_selection():
    branches = [_node(f"b{i}", "q") for i in range(40)]
    chains = [_node(f"c{i}", f"b{i}") for i in range(40)]
    graph = _graph([_node("q", "x"), *branches, *chains, _node("y", " ".join(f"c{i}" for i in range(40)))])
    found = find_cuts(graph)
    assert not found.complete
    assert found.single() == (cut_at(graph, ["q"]),)


def test_a_long_chain_is_listed_whole():
    nodes = [_node(f"t{i}", "x" if i == 0 else f"t{i - 1}", macs=i, constants=(f"w{i}",)) for i in range(1000)]
    graph = _graph(nodes, outputs=("t999",))
    found = find_cuts(graph)
    assert len(found.single()) == 999
    assert found.cuts[10].head_macs == sum(range(11))
    assert found.cuts[10].head_bytes == 110


def test_sizes_are_those_of_the_wire():
    graph = _graph([_node("a", "x"), _node("b", "a"), _node("y", "a b")], shape=(1, 3, 5))
    one, two = find_cuts(graph).cuts
    assert (one.payload_bytes, two.payload_bytes) == (15, 30)
    assert (one.wire_bytes - 15, two.wire_bytes - 30) == (24 + 28 + 4 + 8, 24 + 28 + 4 + 16)


@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 2, 2, 2), (1, 70000), (1, 0), ()])
def test_what_does_not_fit_a_frame_does_not_cross(shape):
    graph = _graph([_node("a", "x"), _node("y", "a")], shape=shape)
    assert find_cuts(graph).cuts == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found 0"),
        (["nowhere"], "found 'nowhere'"),
        (["b"], "'x' reaches it past them"),
        (["a", "b", "add"], r"found \['a', 'b'\] unused"),
        (["y"], "to be outputs"),
    ],
)
def test_an_illegal_cut_names_the_rule(names, message):
    graph = _graph([_node("a", "x"), _node("b", "a"), _node("add", "a b"), _node("y", "add")])
    with pytest.raises(CutError, match=message):
        cut_at(graph, names)


def test_a_graph_out_of_order_is_refused():
    with pytest.raises(CutGraphError, match="before it is made"):
        _graph([_node("y", "a"), _node("a", "x")])
    with pytest.raises(CutGraphError, match="made again"):
        _graph([_node("y", "x"), _node("z", "x", outputs="y")])
