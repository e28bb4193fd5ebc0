"""The planner: optimal on random instances and real graphs, how soon it plans again, how long a plan takes."""

import os
import random
import time
from importlib.metadata import version
from typing import Any

from benchmarks import lite0
from benchmarks.plan_instances import LINKS, best_chain_ms, best_head_ms, random_chain, random_problem
from device_profiles.link import Link, parse_link
from device_profiles.plan_table import PlanTable
from edge_runtime.adapt import Adapter
from edge_runtime.manifest import Quantisation
from export.cut_source import open_cut_source
from split.cut_graph import CutGraph, CutNode, CutTensor
from split.plan import Goal, make_plan, price
from split.plan_chain import ChainError, plan_chain
from split.plan_heads import crossing_names, cut_candidates, message_bytes
from split.plan_mincut import min_cut
from split.plan_problem import RAW_FP32, RAW_INT8, Cost, Encoder, TwoPlaces, make_problem
from split.plan_sweep import make_table
from split.plan_variants import Picture, local_candidate, picture_candidate

INSTANCES = 600
RATES = ("0.1mbit", "1mbit", "5mbit", "20mbit", "100mbit")
DEADLINE_MS = 140.0
_MBIT = 125e3


def rows() -> list[dict[str, Any]]:
    """Rows of `optimal`, `replan` and `plan_time`."""
    return [*optimal_rows(), *replan_rows(), *time_rows()]


def optimal_rows() -> list[dict[str, Any]]:
    """Shares of instances with the same optimum. Times of operators are random; graphs of Lite0 are real."""
    heads, cuts = _heads_equal()
    chains = _chains_equal()
    brute = {"peer": "trying everything"}
    found = [
        _row("optimal.enumeration", f"enumeration equals brute force, {INSTANCES} random instances", heads, "%", 100)
        | brute,
        _row("optimal.mincut", f"min-cut equals brute force, {INSTANCES} random instances", cuts, "%", 100) | brute,
        _row(
            "optimal.chain",
            f"DP equals brute force, {INSTANCES} random chains, latency and throughput",
            chains,
            "%",
            100,
        )
        | brute,
    ]
    graphs = {"inception-like, 9 blocks of 4 branches": _branches(9, 4, side=True)}
    if os.environ.get("HEADTAIL_DATA"):
        for engine in ("onnxruntime", "litert"):
            graphs[f"Lite0 int8, {engine}"] = open_cut_source(lite0.whole(engine=engine)).graph
    shares = []
    for name, graph in graphs.items():
        equal, total, count = _graph_equal(graph)
        shares.append(100 * equal / total)
        print(f"{name}: {count} heads, {equal} of {total} equal")
    what = f"min-cut equals enumeration on {', '.join(graphs)}; {len(RATES)} rates, 3 encoders"
    return [
        *found,
        _row("optimal.graphs", what, min(shares), "%", 100) | {"peer": "enumeration", "peer_version": "own"},
    ]


def replan_rows() -> list[dict[str, Any]]:
    """A simulated link: a step from 20 to 1 Mbit/s, and 20 % jitter at rates through every break-even."""
    table = _table()
    worst, missed = 0, 0
    for seed in range(20):
        windows, late = _step(table, seed)
        worst, missed = max(worst, windows), missed + late
    flaps = sum(_flaps(table, rate, seed) for seed in range(3) for rate in range(41))
    where = "simulated link, 20 % jitter"
    return [
        _row("replan.windows", f"windows until the plan changes after 20 -> 1 Mbit/s, worst of 20 runs, {where}", worst,
             "windows", 3, "<="),
        _row("replan.missed", f"deadlines of {DEADLINE_MS:g} ms missed after the step, 20 x 80 requests, {where}", missed,
             "requests", 0, "=="),
        _row("replan.flaps", f"changes back to a plan left before, 123 runs of 300 windows at 0.5 to 50 Mbit/s, {where}",
             flaps, "changes", 0, "=="),
    ]  # fmt: skip


def time_rows() -> list[dict[str, Any]]:
    """CPU time of a plan from costs to chosen plan and front, with three encoders."""
    found = []
    for name, graph in (("chain", _branches(100, 1)), ("wide", _branches(10, 4, side=True))):
        count = len(graph.nodes)
        seconds, heads = min(_plan_once(graph, seed) for seed in range(3))
        found.append(
            _row(
                f"plan_time.{name}",
                f"CPU time of a plan, {count} nodes ({name}), {heads} heads, 3 encoders",
                seconds,
                "s",
                1.0,
                "<=",
            )
        )
    wide = _branches(13, 15)
    seconds, heads = min(_plan_once(wide, seed) for seed in range(2))
    what = f"CPU time of a plan, {len(wide.nodes)} nodes (too many heads to list), {heads} of them and the min-cuts"
    found.append(_row("plan_time.mincut", what, seconds, "s", 1.0, "<=") | _networkx())
    worst = max(row["value"] for row in found)
    return [
        _row("plan_time", "CPU time of a plan of a graph with 200 nodes, worst of three shapes", worst, "s", 1.0, "<="),
        *found,
    ]


def _heads_equal() -> tuple[float, float]:
    heads = cuts = 0
    for seed in range(INSTANCES):
        problem, link = random_problem(seed), LINKS[seed % len(LINKS)]
        wanted = best_head_ms(problem, link)
        candidates = cut_candidates(problem).candidates
        if wanted is None:
            heads += not candidates
            cuts += not candidates
            continue
        heads += abs(min(price(one, link).p50_ms for one in candidates) - wanted) < 1e-9
        cuts += abs(min(_min_cut_ms(problem, encoder, link) for encoder in problem.encoders) - wanted) <= _byte_ms(
            problem, link
        )
    return 100 * heads / INSTANCES, 100 * cuts / INSTANCES


def _byte_ms(problem: TwoPlaces, link: Link) -> float:
    """What one byte costs: a message is rounded up to whole bytes, a capacity of the flow is not."""
    return link.up_ms_per_byte + max(one.encode_ms_per_byte + one.decode_ms_per_byte for one in problem.encoders)


def _min_cut_ms(problem: TwoPlaces, encoder: Encoder, link: Link) -> float:
    cut = min_cut(problem, encoder, link)
    if cut is None:
        return float("inf")
    names, ending = crossing_names(problem, cut.mask), f"as {encoder.name}"
    only = TwoPlaces(problem.graph, problem.device, problem.host, (encoder,), problem.down_bytes)
    same = [one for one in cut_candidates(only).candidates if one.tensors == names and one.choice.name.endswith(ending)]
    return min((price(one, link).p50_ms for one in same), default=float("inf"))


def _chains_equal() -> float:
    equal = 0
    for seed in range(INSTANCES):
        chain, measure = random_chain(seed), "latency" if seed % 2 else "throughput"
        wanted = best_chain_ms(chain, measure)
        try:
            found = plan_chain(chain, measure).cost_ms
        except ChainError:
            found = None
        equal += found is wanted if wanted is None or found is None else abs(found - wanted) < 1e-9
    return 100 * equal / INSTANCES


def _graph_equal(graph: CutGraph) -> tuple[int, int, int]:
    equal = total = 0
    problem = _costed(graph, 0)
    listed = cut_candidates(problem)
    for encoder in problem.encoders:
        own = [one for one in listed.candidates if one.choice.name.endswith(f"as {encoder.name}")]
        for rate in RATES:
            link = parse_link(f"{rate}/5ms")
            best = min(price(one, link).p50_ms for one in own)
            cut = min_cut(problem, encoder, link)
            names = () if cut is None else crossing_names(problem, cut.mask)
            same = [price(one, link).p50_ms for one in own if one.tensors == names]
            if not same:  # more tensors than a frame holds: no plan, and none that enumeration lists
                print(f"min-cut with {len(names)} tensors at {rate}, {message_bytes(problem, names, encoder)} B")
            equal += bool(same) and same[0] - best <= _byte_ms(problem, link)
            total += 1
    return equal, total, listed.heads


def _costed(graph: CutGraph, seed: int) -> TwoPlaces:
    """Times in proportion to multiply-accumulates with random efficiency; the host is eight times as fast."""
    rng = random.Random(seed)
    device = [Cost(ms, 1.3 * ms) for ms in (node.macs / 2e6 * rng.uniform(0.5, 2) + 0.005 for node in graph.nodes)]
    host = [Cost(cost.p50_ms / 8, cost.p95_ms / 8) for cost in device]
    return make_problem(graph, device, host, encoders=(RAW_INT8, RAW_FP32, Encoder("rans", 0.6, 1e-5, 1e-5)))


def _branches(blocks: int, branches: int, *, side: bool = False) -> CutGraph:
    """Blocks of parallel branches of two operators (three nodes in one with `side`), joined by one operator each."""
    step = Quantisation(scale=0.5, zero_point=0)
    nodes: list[CutNode] = []
    sizes: dict[str, int] = {}
    last = "x"
    for block in range(blocks):
        values = max(150_000 // (block + 1), 64)
        ends = []
        for branch in range(branches):
            name = f"b{block}_{branch}"
            nodes.append(CutNode(name, "conv", (last,), (name,), 4_000_000, (f"{name}.w",)))
            sizes[name] = values // branches
            ends.append(name)
            if side:
                nodes.append(CutNode(f"{name}s", "conv", (name,), (f"{name}s",), 2_000_000, (f"{name}s.w",)))
                sizes[f"{name}s"] = values // branches
                ends[-1] = f"{name}s"
        last = f"j{block}"
        nodes.append(CutNode(last, "concat", tuple(ends), (last,), 100_000, ()))
        sizes[last] = values
    tensors = {"x": CutTensor("x", (1, 150_528), "float32")}
    tensors |= {name: CutTensor(name, (1, count), "uint8", step) for name, count in sizes.items()}
    constants = {name: 20_000 for node in nodes for name in node.constants}
    return CutGraph(tuple(nodes), tensors, constants, ("x",), (last,))


def _plan_once(graph: CutGraph, seed: int) -> tuple[float, int]:
    link = parse_link("5mbit/15ms")
    begun = time.process_time()
    problem = _costed(graph, seed)
    listed = cut_candidates(problem, accuracy=0.9, links=(link,))
    make_plan(listed.candidates, link, Goal(min_accuracy=0.5, ram_bytes=1 << 30))
    return time.process_time() - begun, listed.heads


def _table() -> PlanTable:
    problem = _costed(_branches(20, 1), 1)
    whole = Cost(sum(one.p50_ms for one in problem.host), sum(one.p95_ms for one in problem.host))
    local = Cost(60.0, 66.0)
    candidates = [
        local_candidate(local, accuracy=0.9, weight_bytes=1, peak_bytes=1),
        picture_candidate(Picture("jpeg", 90, 30_000, Cost(3.0, 4.0), Cost(2.0, 3.0), 0.9), whole, 1000),
        *cut_candidates(problem, accuracy=0.9).candidates,
    ]
    link = parse_link("20mbit/5ms~1ms", per_message_ms=0.2)
    return make_table(candidates, link, Goal(deadline_ms=DEADLINE_MS), names=("m", "d", "h"))


def _probe(adapter: Adapter) -> Any:
    """The current plan; a remote one of the table while all runs locally."""
    if adapter.current.kind != "local":
        return adapter.current
    return min((one for one in adapter.table.choices if one.kind != "local"), key=lambda one: one.up_bytes)


def _true(table: PlanTable, rate: float, rng: random.Random) -> Link:
    return table.link.at_rate(rate * rng.uniform(0.8, 1.2))


def _step(table: PlanTable, seed: int) -> tuple[int, int]:
    """Windows until the change after the step, and deadlines missed after it."""
    adapter, rng = Adapter(table), random.Random(seed)
    changed, missed = 99, 0
    local = table.choices[table.local or 0]
    for window in range(40):
        rate = 20 * _MBIT if window < 20 else _MBIT
        for _ in range(4):
            link = _true(table, rate, rng)
            if adapter.current.kind == "local" or adapter.route() == "local":
                probe = _probe(adapter)
                adapter.finished(up_bytes=probe.up_bytes, down_bytes=probe.down_bytes, link_ms=probe.away_ms(link))
                missed += window >= 20 and local.device_p95_ms > DEADLINE_MS
                continue
            choice, latest = adapter.current, adapter.start_fallback_at_ms(remaining_ms=DEADLINE_MS) or 0.0
            total, waited = choice.latency_ms(link), choice.away_ms(link)
            if total > latest:
                total, waited = latest + local.device_p95_ms, max(latest - choice.device_ms, 0.1)
            adapter.finished(up_bytes=choice.up_bytes, down_bytes=choice.down_bytes, link_ms=waited)
            missed += window >= 20 and total > DEADLINE_MS
        if adapter.end_window() is not None and window >= 20:
            changed = min(changed, window - 19)
    return changed, missed


def _flaps(table: PlanTable, step: int, seed: int) -> int:
    adapter, rng = Adapter(table), random.Random(seed)
    rate = 0.5 * _MBIT * 10 ** (step / 20)
    used = [adapter.number]
    for _ in range(300):
        probe = _probe(adapter)
        ms = probe.away_ms(_true(table, rate, rng))
        adapter.finished(up_bytes=probe.up_bytes, down_bytes=probe.down_bytes, link_ms=ms)
        if adapter.end_window() is not None:
            used.append(adapter.number)
    return sum(number in used[:index] for index, number in enumerate(used))


def _networkx() -> dict[str, str]:
    return {"peer": "networkx", "peer_version": version("networkx")}


def _row(name: str, what: str, value: float, unit: str, bar: float, direction: str = ">=") -> dict[str, Any]:
    return {"id": name, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}


if __name__ == "__main__":
    for row in rows():
        print(row["id"], row["value"], row["unit"], row["direction"], row["bar"])
