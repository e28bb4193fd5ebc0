"""Random small planning problems, shared by the planner's tests."""

import random

import pytest

from edge_runtime.manifest import Quantisation
from split.cut_graph import CutGraph, CutNode, CutTensor
from split.plan_problem import RAW_FP32, RAW_INT8, Cost, Encoder, make_problem

STEP = Quantisation(scale=0.5, zero_point=3)


def random_problem(seed, *, most=9):
    """A connected network of 2 to `most` operators; some tensors may not cross, some operators are repeatable."""
    rng = random.Random(seed)
    count = rng.randint(2, most)
    names, nodes = ["x"], []
    for index in range(count):
        near = names[-3:] if index else names
        reads = rng.sample(near, k=min(len(near), rng.choice((1, 1, 2, 3))))
        nodes.append(
            CutNode(f"n{index}", rng.choice("abc"), tuple(reads), (f"t{index}",), rng.randint(0, 9), (f"w{index}",),
                    repeatable=rng.random() < 0.1)
        )  # fmt: skip
        names.append(f"t{index}")
    read = {name for node in nodes for name in node.inputs}
    ends = tuple(name for name in names[1:] if name not in read)
    free = 0.15 if rng.random() < 0.5 else 0.0
    tensors = {
        name: CutTensor(name, (1, rng.randint(1, 4000)), "float32")
        if name == "x" or rng.random() < free
        else CutTensor(name, (1, rng.randint(1, 4000)), "uint8", STEP)
        for name in names
    }
    constants = {f"w{index}": rng.randint(0, 5000) for index in range(count)}
    graph = CutGraph(tuple(nodes), tensors, constants, ("x",), ends)

    def costs(most_ms):
        return [Cost(ms, ms * rng.uniform(1, 1.5)) for ms in (rng.uniform(0.01, most_ms) for _ in nodes)]

    encoders = (RAW_INT8, RAW_FP32, Encoder("rans", 0.4, 2e-3, 1e-3, accuracy_drop=0.01, fixed_bytes=16))
    chosen = tuple(rng.sample(encoders, k=rng.randint(1, 3)))
    return make_problem(graph, costs(4.0), costs(0.8), encoders=chosen)


@pytest.fixture(scope="session")
def make_random_problem():
    """The function, for tests that draw seeds."""
    return random_problem
