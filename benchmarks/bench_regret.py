"""Regret: what a plan loses against the best split that can be measured, from profiles and from predictions only.

Every single-tensor cut of four networks is built (head.onnx, tail.onnx) and timed in the rounds in which the networks and the
predictor's chains are profiled (`bench_rounds`); a device is so many times slower than this machine, a link is computed. The
planner sees a profile of the whole network, or only a calibration from chains.
"""

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
RUNS = 3  # of every head, tail and whole network in each round
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
        self._sessions = {("whole", ""): _session(artefact.entry.read_bytes())}
        for name in self.names:
            self._sessions["head", name] = _session(extractor.extract_model(["x"], [name]).SerializeToString())
            self._sessions["tail", name] = _session(extractor.extract_model([name], ["y"]).SerializeToString())
        self._rounds: list[dict[tuple[str, str], list[float]]] = []

    def measure(self) -> float:
        """CPU time of every part, three runs after one that is not timed; the sum of the medians, ms."""
        times: dict[tuple[str, str], list[float]] = {key: [] for key in self._sessions}
        for key, session in self._sessions.items():
            feeds = {one.name: np.zeros(one.shape, np.float32) for one in session.get_inputs()}
            session.run(None, feeds)
            for _ in range(RUNS):
                begun = time.process_time_ns()
                session.run(None, feeds)
                times[key].append((time.process_time_ns() - begun) / 1e6)
        self._rounds.append(times)
        return sum(statistics.median(each) for each in times.values())

    def timed(self, rounds: Sequence[int]) -> Timed:
        """Medians over some rounds."""
        middle = {
            key: statistics.median([one for index in rounds for one in self._rounds[index][key]])
            for key in self._sessions
        }
        return Timed(middle["whole", ""], {name: (middle["head", name], middle["tail", name]) for name in self.names})


def make_net(cuts: Cuts, rounds: Sequence[int], profile: Profile, calibration: Calibration) -> Net:
    """What was measured of a network, and what each planner knows of it."""
    profile = msgspec.structs.replace(profile, whole=profile.kernel_reference)  # CPU time, as the cuts are timed
    board = load_board(calibration.board)
    predicted = predicted_times(cuts.graph, calibration, board, precision="fp32").costs
    profiled, inputs = costs_from_profile(cuts.graph, profile), cuts.artefact.manifest.inputs[0].shape
    picture_bytes = int(np.prod(inputs))
    return Net(profile.model, cuts.graph, cuts.timed(rounds), profiled, predicted, picture_bytes)


def regret_rows(nets: Sequence[Net], said: str) -> list[dict[str, Any]]:
    """Rows regret_profiled, regret_predicted and, for comparison, searches with the same candidates.

    Args:
        nets: Measured in the same rounds.
        said: Of the rounds, for the rows.
    """
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
            f"{len(lost)} scenarios, {said}"
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
