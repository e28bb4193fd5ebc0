"""Predicted against measured totals over a real broker and an emulated link, and how much of a request is unaccounted.

Server (broker and tails) and device are hosts of a `netlab`; the device is this process. In each round of some seconds the
network is profiled, every plan answers requests over its link, and the broker's costs for each message and byte are measured
over a link without limits. Of each the fastest third of the rounds counts, as in every profile that is taken in turn.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.netlab import Access, NetLab, parse_access, unavailable
from benchmarks.profile_nets import NETS, SIZES
from device_profiles.errors import EdgeError
from device_profiles.link import parse_link
from device_profiles.measurement import Profile
from edge_runtime.answer import Answer
from edge_runtime.artefact import Artefact
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.profile_in_turn import profile_in_turn
from edge_runtime.profile_rounds import fastest_blocks
from edge_runtime.profiler import ProfileOptions, profile_artefact
from export.chain_nets import write_net
from export.cut_pair import cut_network
from export.cut_source import open_cut_source
from orchestrator.broker import BrokerOptions, MosquittoBroker
from split.cut_graph import CutGraph
from split.plan import Goal, make_plan, price
from split.plan_heads import Candidate, cut_candidates
from split.plan_problem import RAW_INT8, costs_from_profile, make_problem

LINKS = ("5mbit/10ms", "20mbit/15ms", "50mbit/5ms", "100mbit/5ms")
MODELS = ("mobile_v2", "residual_50")
SLOWER = 8.0  # a device for which another cut is best; what is compared is this machine's time of that cut
ROUNDS, WARM, REQUESTS = 9, 2, 6
_TAIL = (
    "import sys; from orchestrator.tail_server import serve_tail\n"
    "with serve_tail(sys.argv[1], *sys.argv[2:]): print('ready', flush=True); sys.stdin.read()"
)


class ServedError(EdgeError):
    """The tail did not start."""


@dataclass(frozen=True)
class Outcome:
    """One plan over one link, ms."""

    name: str
    link: str
    predicted: float
    measured: float
    unaccounted: float  # share of the wall time that the caller saw


def rows() -> list[dict[str, Any]]:
    """Rows total and breakdown."""
    why = unavailable()
    if why is not None:
        return [
            _row("total", f"not measured: {why}", None, "<=", 10),
            _row("breakdown", f"not measured: {why}", None, "<=", 5),
        ]
    found = list(outcomes())
    errors = [100 * abs(one.predicted / one.measured - 1) for one in found]
    for one in found:
        print(f"{one.name} over {one.link}: predicted {one.predicted:.2f}, measured {one.measured:.2f} ms", flush=True)
    what = f"predicted p50 of the best split against the median end to end over the broker, {len(found)} plans ({len(MODELS)} networks, links {', '.join(LINKS)}): mean error"
    shares = [100 * one.unaccounted for one in found]
    return [
        _row("total", what, statistics.fmean(errors), "<=", 10),
        _row("total.max", "the same, largest error", max(errors), "info", None),
        _row("breakdown", f"median share of the wall time that no stage shows, worst of {len(shares)} plans", max(shares), "<=", 5),
        _row("breakdown.mean", "the same, mean of the plans", statistics.fmean(shares), "info", None),
    ]  # fmt: skip


def outcomes() -> Iterator[Outcome]:
    """Every network over every link."""
    with tempfile.TemporaryDirectory() as folder, NetLab({"server": Access(), "device": Access()}) as lab:
        with lab["server"].inside():
            broker = MosquittoBroker(BrokerOptions(host=lab["server"].address, insecure=True))
        try:
            for name in MODELS:
                whole = write_net(Path(folder), name, NETS[name](precision="int8"), SIZES[name], "int8")
                yield from _network(Path(folder), whole, lab, broker.url)
        finally:
            broker.close()


@dataclass(frozen=True)
class Asked:
    """One round of requests: their answers, and the wall time of each call, ms."""

    answers: list[Answer]
    walls: list[float]


Tensors = tuple[str, ...]
FREE = ""  # name of the link without limits


def _network(folder: Path, whole: Artefact, lab: NetLab, url: str) -> Iterator[Outcome]:
    graph = open_cut_source(whole.folder).graph
    plans = _choose(
        graph, profile_artefact(whole, ProfileOptions(runs=50, seconds=0.0, limit_s=4.0, kernels_only=True))
    )
    x = np.random.default_rng(0).standard_normal(whole.manifest.inputs[0].shape).astype(np.float32)
    asked: dict[tuple[str, Tensors], list[Asked]] = {plan: [] for plan in plans}
    with ExitStack() as stack:
        devices = _connect(stack, folder, whole, list(dict.fromkeys(tensors for _, tensors in plans)), lab, url)

        def ask(_round: int) -> None:
            for link, tensors in plans:
                lab["device"].set(parse_access(link) if link else Access())
                asked[link, tensors].append(_ask(devices[tensors], x))

        options = ProfileOptions(runs=5 * ROUNDS, seconds=0.0, limit_s=1.0 * ROUNDS, kernels_only=True)
        (profile,) = profile_in_turn([whole], options, rounds=ROUNDS, beside=ask)
    costs = costs_from_profile(graph, profile)
    priced = {
        one.tensors: one for one in cut_candidates(make_problem(graph, costs, costs, encoders=(RAW_INT8,))).candidates
    }
    per_message, per_byte = _broker_costs([(priced[t], asked[link, t]) for link, t in plans if link == FREE])
    for text, tensors in (plan for plan in plans if plan[0] != FREE):
        chosen = price(priced[tensors], parse_link(text, per_message_ms=per_message, per_byte_ms=per_byte))
        yield _outcome(chosen.candidate.choice.name, text, chosen.p50_ms, asked[text, tensors])


def _choose(graph: CutGraph, profile: Profile) -> list[tuple[str, Tensors]]:
    """Links and cuts: the best for this machine and for a slower device, and the smallest and largest without limits."""
    costs, slow = costs_from_profile(graph, profile), costs_from_profile(graph, profile, factor=SLOWER)
    problems = [make_problem(graph, device, costs, encoders=(RAW_INT8,)) for device in (costs, slow)]
    lists = [cut_candidates(one).candidates for one in problems]
    ordered = sorted(lists[0], key=lambda one: one.choice.up_bytes)
    best = [
        (text, make_plan(each, parse_link(text), Goal()).chosen.candidate.tensors) for text in LINKS for each in lists
    ]
    return list(dict.fromkeys([*best, (FREE, ordered[0].tensors), (FREE, ordered[-1].tensors)]))


def _connect(
    stack: ExitStack, folder: Path, whole: Artefact, cuts: Sequence[Tensors], lab: NetLab, url: str
) -> dict[Tensors, Offloader]:
    """A pair for each cut: all tails in one process on the server, heads in this one on the device."""
    name = whole.manifest.model.name
    pairs = [cut_network(whole.folder, tensors, out=folder / f"{name}-{index}") for index, tensors in enumerate(cuts)]
    stack.enter_context(_serving(lab, url, [tail for _, tail in pairs]))
    stack.enter_context(lab["device"].inside())
    options = OffloadOptions(deadline_ms=20_000.0)
    found = {}
    for index, (tensors, (head, _)) in enumerate(zip(cuts, pairs, strict=True)):
        found[tensors] = stack.enter_context(Offloader(url, f"bench-{index}", head=head, options=options))
        found[tensors].wait_connected()
    return found


def _ask(device: Offloader, x: np.ndarray) -> Asked:
    """A few requests after some that are not timed."""
    found = Asked([], [])
    for number in range(WARM + REQUESTS):
        begun = time.perf_counter()
        answer = device.infer(x)
        if number >= WARM:
            found.walls.append(1000 * (time.perf_counter() - begun))
            found.answers.append(answer)
    return found


def _counted(rounds: Sequence[Asked]) -> list[tuple[Answer, float]]:
    """Requests of the fastest third of the rounds."""
    chosen = fastest_blocks([statistics.median(one.walls) for one in rounds])
    return [pair for index in chosen for pair in zip(rounds[index].answers, rounds[index].walls, strict=True)]


def _outcome(name: str, link: str, predicted: float, rounds: Sequence[Asked]) -> Outcome:
    counted = _counted(rounds)
    shares = [(one.breakdown.unaccounted_ms + wall - one.breakdown.total_ms) / wall for one, wall in counted]
    return Outcome(name, link, predicted, statistics.median([wall for _, wall in counted]), statistics.median(shares))


def _broker_costs(ends: Sequence[tuple[Candidate, list[Asked]]]) -> tuple[float, float]:
    """Milliseconds for each message and byte: a line through the smallest and the largest cut over a link without limits."""
    points = []
    for one, rounds in ends:
        link_ms = [answer.breakdown.link_ms + answer.breakdown.unaccounted_ms for answer, _ in _counted(rounds)]
        points.append((one.choice.up_bytes + one.choice.down_bytes, statistics.median(link_ms)))
    (small, least), (large, most) = points
    per_byte = max(0.0, (most - least) / (large - small))
    return max(0.0, (least - per_byte * small) / 2), per_byte


@contextmanager
def _serving(lab: NetLab, url: str, tails: Sequence[Artefact]) -> Iterator[None]:
    process = lab["server"].popen(
        [sys.executable, "-c", _TAIL, url, *[tail.folder for tail in tails]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise ServedError(f"Wanted {len(tails)} tails on {url}, found the end of their process.")
        yield
    finally:
        process.communicate()


def _row(name: str, what: str, value: float | None, direction: str, bar: float | None) -> dict[str, Any]:
    return {"id": name, "what": what, "value": value, "unit": "%", "direction": direction, "bar": bar}


if __name__ == "__main__":
    for row in rows():
        print(row["id"], row["value"], row["unit"], row["direction"], row["bar"], row["what"], sep="\t")
