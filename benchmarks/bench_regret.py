"""Regret: what a plan loses against the best split that can be measured, from profiles and from predictions only.

Every single-tensor cut of four networks is built (head.onnx, tail.onnx) and timed in the rounds in which the networks and the
predictor's chains are profiled (`bench_rounds`), each head and tail beside the whole network: what counts is their share of it, which
the machine's speed changes little. A device is so many times slower than this machine, a link is computed. The planner sees a
profile of the whole network, or only a calibration from chains.
"""

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from device_profiles.link import Link, parse_link
from device_profiles.load import load_board
from device_profiles.measurement import Profile
from edge_runtime.artefact import Artefact
from edge_runtime.backends.onnxrt import session_options
from edge_runtime.profile_rounds import fastest_blocks
from export.cut_onnx import load_onnx
from export.plan_inputs import predicted_times
from split.cut_graph import CutGraph
from split.plan import Goal, price
from split.plan_env import PlanEnv, genetic_search, random_search
from split.plan_heads import Candidate, cut_candidates
from split.plan_problem import RAW_FP32, RAW_INT8, Cost, costs_from_profile, let_floats_cross, make_problem
from split.plan_variants import Picture, local_candidate, picture_candidate
from split.predict import Calibration

SLOWER = (4.0, 12.0, 40.0)
RATES = ("1mbit", "5mbit", "20mbit", "100mbit")
ENCODERS = (RAW_FP32, RAW_INT8)
RUNS = 2  # of whole, head and tail in turn
PARTS = 3  # rounds in which every cut has a turn
_SEARCH_STEPS = 32


@dataclass(frozen=True)
class Timed:
    """Measured on this machine, ms of CPU time: the whole, and (head, tail) for each cut."""

    whole: float
    cuts: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Net:
    """A network with what was measured and what is known to each planner: times of operators on this machine."""

    name: str
    graph: CutGraph
    timed: Timed
    profiled: tuple[Cost, ...]
    predicted: tuple[Cost, ...]
    picture_bytes: int


class Cuts:
    """Every cut of a network, opened, and timed a little in each round."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.graph = let_floats_cross(load_onnx(artefact.entry).graph)
        free = [Cost(1.0, 1.0)] * len(self.graph.nodes)  # only the list of cuts is wanted
        problem = make_problem(self.graph, free, free, encoders=(RAW_FP32,))
        self.names = [one.tensors[0] for one in cut_candidates(problem).candidates if len(one.tensors) == 1]
        extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(onnx.load(artefact.entry)))
        self._whole = _session(artefact.entry.read_bytes())
        self._pairs = {
            name: (
                _session(extractor.extract_model(["x"], [name]).SerializeToString()),
                _session(extractor.extract_model([name], ["y"]).SerializeToString()),
            )
            for name in self.names
        }
        self._times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in self.names}

    def measure(self, number: int) -> None:
        """CPU time of the whole, a head and its tail in turn, after one run of each that is not timed; a third of the cuts."""
        for name in self.names[number % PARTS :: PARTS]:
            sessions = (self._whole, *self._pairs[name])
            runs = [tuple(_cpu_ms(one) for one in sessions) for _ in range(1 + RUNS)]
            self._times[name] += [(whole, head, tail) for whole, head, tail in runs[1:]]

    def timed(self, whole_ms: float) -> Timed:
        """Heads and tails as shares of the whole beside them, medians over the fastest third of their turns.

        Args:
            whole_ms: Of the whole network, to which the shares are applied.
        """
        cuts = {}
        for name, times in self._times.items():
            fastest = [times[index] for index in fastest_blocks([sum(one) for one in times])]
            head = statistics.median(one[1] / one[0] for one in fastest)
            tail = statistics.median(one[2] / one[0] for one in fastest)
            cuts[name] = (whole_ms * head, whole_ms * tail)
        return Timed(whole_ms, cuts)


def _cpu_ms(session: ort.InferenceSession) -> float:
    feeds = {one.name: np.zeros(one.shape, np.float32) for one in session.get_inputs()}
    begun = time.process_time_ns()
    session.run(None, feeds)
    return (time.process_time_ns() - begun) / 1e6


def make_net(cuts: Cuts, profile: Profile, calibration: Calibration) -> Net:
    """What was measured of a network, and what each planner knows of it."""
    whole_ms = profile.kernel_reference.p50
    profile = msgspec.structs.replace(profile, whole=profile.kernel_reference)  # CPU time, as the cuts are timed
    board = load_board(calibration.board)
    predicted = predicted_times(cuts.graph, calibration, board, precision="fp32").costs
    picture_bytes = math.prod(cuts.artefact.manifest.inputs[0].shape)
    profiled = costs_from_profile(cuts.graph, profile)
    return Net(profile.model, cuts.graph, cuts.timed(whole_ms), profiled, predicted, picture_bytes)


def regret_rows(nets: Sequence[Net]) -> list[dict[str, Any]]:
    """Rows regret_profiled, regret_predicted and, for comparison, searches with the same candidates."""
    scenarios = [(net, slower, f"{rate}/5ms", encoder) for net in nets for slower in SLOWER for rate in RATES
                 for encoder in ENCODERS]  # fmt: skip
    found = []
    for source, mean_bar, p95_bar in (("profiled", 1, 5), ("predicted", 2, 10)):
        lost = sorted(
            100 * regret(net, source, slower, parse_link(link), encoder) for net, slower, link, encoder in scenarios
        )
        cuts = sum(len(net.timed.cuts) for net in nets)
        what = (
            f"plan from {source} times against the best of {cuts} measured cuts of {len(nets)} networks, "
            f"{len(lost)} scenarios"
        )
        found += [
            _row(f"regret_{source}.mean", f"{what}: mean", statistics.fmean(lost), "%", "<=", mean_bar),
            _row(f"regret_{source}.p95", f"{what}: p95", lost[int(0.95 * len(lost))], "%", "<=", p95_bar),
            _row(f"regret_{source}.max", f"{what}: largest", lost[-1], "%", "info", None),
        ]
    return [*found, *search_rows(nets)]


def _session(data: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(data, session_options("all", 1), providers=["CPUExecutionProvider"])


def candidates(net: Net, source: str, slower: float, encoders: Sequence[Any]) -> list[Candidate]:
    """All local, the picture raw, and every cut that was measured."""
    host = net.profiled if source == "profiled" else net.predicted
    device = [Cost(one.p50_ms * slower, one.p95_ms * slower) for one in host]
    problem = make_problem(net.graph, device, host, encoders=tuple(encoders))
    whole = Cost(sum(one.p50_ms for one in host), sum(one.p95_ms for one in host))
    local = Cost(whole.p50_ms * slower, whole.p95_ms * slower)
    raw = Picture("raw", None, net.picture_bytes, Cost(0.0, 0.0), Cost(0.0, 0.0), None)
    return [
        local_candidate(local, accuracy=None, weight_bytes=None, peak_bytes=None),
        picture_candidate(raw, whole, problem.down_bytes),
        *(one for one in cut_candidates(problem).candidates if len(one.tensors) == 1),
    ]


def measured_ms(net: Net, one: Candidate, slower: float, link: Link) -> float:
    """What a candidate really takes on this machine as both places, the device slowed down."""
    if one.choice.kind == "local":
        return slower * net.timed.whole
    head, tail = (0.0, net.timed.whole) if one.choice.kind == "remote" else net.timed.cuts[one.tensors[0]]
    return slower * head + one.choice.away_ms(link) + tail


def regret(net: Net, source: str, slower: float, link: Link, encoder: Any) -> float:
    """Measured latency of the plan over that of the best, less one."""
    listed = candidates(net, source, slower, (encoder,))
    chosen = min(listed, key=lambda one: price(one, link).p50_ms)
    best = min(measured_ms(net, one, slower, link) for one in listed)
    return measured_ms(net, chosen, slower, link) / best - 1


def search_rows(nets: Sequence[Net]) -> list[dict[str, Any]]:
    """What random and genetic search lose against enumeration with the same candidates and few evaluations."""
    lost: dict[str, list[float]] = {"random": [], "genetic": []}
    for net in nets:
        for slower in SLOWER:
            listed = candidates(net, "profiled", slower, ENCODERS)
            for rate in RATES:
                link = parse_link(f"{rate}/5ms")
                best = min(price(one, link).p50_ms for one in listed)
                for name, search in (("random", random_search), ("genetic", genetic_search)):
                    seed = random.Random(f"{net.name}{slower}{rate}").randrange(1 << 30)
                    reward = search(PlanEnv(listed, link, Goal(), budget=_SEARCH_STEPS), seed=seed)
                    lost[name].append(100 * (-reward / best - 1))
    return [
        _row(f"search.{name}", f"{name} search, {_SEARCH_STEPS} evaluations, above the enumerated optimum, mean of {len(values)}",
             statistics.fmean(values), "%", "info", None)
        for name, values in lost.items()
    ]  # fmt: skip


def _row(name: str, what: str, value: float, unit: str, direction: str, bar: float | None) -> dict[str, Any]:
    return {"id": name, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}
