"""Predicted against measured totals over a real broker and an emulated link, and how much of a request is unaccounted.

Server (broker and tail) and device are hosts of a `netlab`; the device is this process. Costs of the broker for each
message and byte are measured first, on the same broker over a link without limits.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.netlab import Access, NetLab, parse_access, unavailable
from benchmarks.profile_nets import NETS, SIZES
from device_profiles.errors import EdgeError
from device_profiles.link import parse_link
from edge_runtime.answer import Answer
from edge_runtime.artefact import Artefact
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.profiler import ProfileOptions, profile_artefact
from export.chain_nets import write_net
from export.cut_pair import cut_network
from export.cut_source import open_cut_source
from orchestrator.broker import BrokerOptions, MosquittoBroker
from split.plan import Goal, make_plan, price
from split.plan_heads import Candidate, cut_candidates
from split.plan_problem import RAW_INT8, costs_from_profile, make_problem

LINKS = ("5mbit/10ms", "20mbit/15ms", "50mbit/5ms", "100mbit/5ms")
MODELS = ("mobile_v1", "residual_18")
SLOWER = 8.0  # a device for which another cut is best; what is compared is this machine's time of that cut
WARM, REQUESTS = 10, 40
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


def _network(folder: Path, whole: Artefact, lab: NetLab, url: str) -> Iterator[Outcome]:
    source = open_cut_source(whole.folder)
    profile = profile_artefact(whole, ProfileOptions(runs=100, seconds=0.0, limit_s=6.0, kernels_only=True))
    costs = costs_from_profile(source.graph, profile)
    candidates = cut_candidates(make_problem(source.graph, costs, costs, encoders=(RAW_INT8,))).candidates
    slow = costs_from_profile(source.graph, profile, factor=SLOWER)
    slower = cut_candidates(make_problem(source.graph, slow, costs, encoders=(RAW_INT8,))).candidates
    x = np.random.default_rng(0).standard_normal(whole.manifest.inputs[0].shape).astype(np.float32)
    costs_of_broker = None
    built: dict[tuple[str, ...], tuple[Artefact, Artefact]] = {}
    for text in LINKS:
        lab["device"].set(Access())
        if costs_of_broker is None:
            costs_of_broker = _broker_costs(folder, whole, candidates, lab, url, x, built)
        link = parse_link(text, per_message_ms=costs_of_broker[0], per_byte_ms=costs_of_broker[1])
        lab["device"].set(parse_access(text))
        tensors = dict.fromkeys(make_plan(each, link, Goal()).chosen.candidate.tensors for each in (candidates, slower))
        for chosen in [price(one, link) for one in candidates if one.tensors in tensors]:
            answers, walls = _ask(lab, url, *_pair(folder, whole, chosen.candidate, built), x)
            shares = [
                (one.breakdown.unaccounted_ms + wall - one.breakdown.total_ms) / wall
                for one, wall in zip(answers, walls, strict=True)
            ]
            name, wall = chosen.candidate.choice.name, statistics.median(walls)
            yield Outcome(name, text, chosen.p50_ms, wall, statistics.median(shares))


def _broker_costs(
    folder: Path, whole: Artefact, candidates: Sequence[Candidate], lab: NetLab, url: str, x: np.ndarray,
    built: dict[tuple[str, ...], tuple[Artefact, Artefact]],
) -> tuple[float, float]:  # fmt: skip
    """Milliseconds for each message and byte: a line through the smallest and the largest cut over a link without limits."""
    ordered = sorted(candidates, key=lambda one: one.choice.up_bytes)
    points = []
    for one in (ordered[0], ordered[-1]):
        answers, _ = _ask(lab, url, *_pair(folder, whole, one, built), x)
        link_ms = statistics.median([answer.breakdown.link_ms + answer.breakdown.unaccounted_ms for answer in answers])
        points.append((one.choice.up_bytes + one.choice.down_bytes, link_ms))
    (small, least), (large, most) = points
    per_byte = max(0.0, (most - least) / (large - small))
    return max(0.0, (least - per_byte * small) / 2), per_byte


def _pair(
    folder: Path, whole: Artefact, one: Candidate, built: dict[tuple[str, ...], tuple[Artefact, Artefact]]
) -> tuple[Artefact, Artefact]:
    if one.tensors not in built:
        out = folder / f"{whole.manifest.model.name}-pair-{len(built)}"
        built[one.tensors] = cut_network(whole.folder, one.tensors, out=out)
    return built[one.tensors]


def _ask(lab: NetLab, url: str, head: Artefact, tail: Artefact, x: np.ndarray) -> tuple[list[Answer], list[float]]:
    """Answers of the tail, and the wall time of each call."""
    answers, walls = [], []
    options = OffloadOptions(deadline_ms=20_000.0)
    with (
        _serving(lab, url, tail),
        lab["device"].inside(),
        Offloader(url, "bench", head=head, options=options) as device,
    ):
        device.wait_connected()
        for number in range(WARM + REQUESTS):
            begun = time.perf_counter()
            answer = device.infer(x)
            if number >= WARM:
                walls.append(1000 * (time.perf_counter() - begun))
                answers.append(answer)
    return answers, walls


@contextmanager
def _serving(lab: NetLab, url: str, tail: Artefact) -> Iterator[None]:
    process = lab["server"].popen(
        [sys.executable, "-c", _TAIL, url, tail.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise ServedError(f"Wanted a tail for {tail.folder}, found its end.")
        yield
    finally:
        process.communicate()


def _row(name: str, what: str, value: float | None, direction: str, bar: float | None) -> dict[str, Any]:
    return {"id": name, "what": what, "value": value, "unit": "%", "direction": direction, "bar": bar}


if __name__ == "__main__":
    for row in rows():
        print(row["id"], row["value"], row["unit"], row["direction"], row["bar"], row["what"], sep="\t")
