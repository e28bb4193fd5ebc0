"""Profiler, predictor and planner against measurements of the same rounds: fp32, one thread, on one core.

The machine may change its speed for minutes, and not alike for every kernel. In each round of some seconds every chain that
the predictor learns from, every network that it has not seen, and heads and tails of these have a turn; of each the
fastest third counts.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_predict import case_rows, open_chains, open_nets, options
from benchmarks.bench_profile import profile_rows
from benchmarks.bench_regret import Cuts, make_net, regret_rows
from benchmarks.one_core import on_one_core
from edge_runtime.profile_in_turn import profile_in_turn
from export.calibrate import fit_all

CHAINS = 32
ROUNDS, RUNS = 24, 3


def rows() -> Iterator[dict[str, Any]]:
    """Rows kernel_sum, mapped, rss, layer_mape, layer_acc10, net_error, regret_profiled, regret_predicted and search."""
    with tempfile.TemporaryDirectory() as folder, on_one_core():
        chains, nets = open_chains(Path(folder), "fp32", CHAINS), open_nets(Path(folder), "fp32")
        cuts = [Cuts(artefact) for artefact in nets]
        found = profile_in_turn(
            [*chains, *nets], options(1, ROUNDS, RUNS), rounds=ROUNDS,
            beside=lambda number: [one.measure(number) for one in cuts],
            on_step=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
    learned, profiles = found[:CHAINS], found[CHAINS:]
    for one in found:
        if one.status != "ok":
            print(f"{one.model}: {one.status} {'; '.join(one.remarks)}", file=sys.stderr)
    yield from profile_rows({one.model: one for one in profiles}, learned)
    yield from case_rows(found, CHAINS, bars=True)
    calibration = fit_all(learned)
    measured = [make_net(cut, one, calibration) for cut, one in zip(cuts, profiles, strict=True)]
    yield from regret_rows(measured)


if __name__ == "__main__":
    for row in rows():
        print(row["id"], row["value"], row["unit"], row["direction"], row["bar"], row["what"], sep="\t")
