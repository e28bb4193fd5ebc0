"""`headtail profile ARTEFACT [--on PLACE]`: what an artefact costs where it runs, kernel by kernel."""

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from device_profiles.errors import MissingDependencyError
from device_profiles.measurement import Profile, dump_profile
from edge_runtime.artefact import open_artefact
from edge_runtime.profile_text import SHOWN, costliest, facts, format_time, label
from edge_runtime.profiler import ProfileOptions
from orchestrator.commands.output import format_bytes, print_fields, print_json, print_table, terminal_width
from orchestrator.commands.verify import find_place

_WIDE = 120  # columns of a terminal that shows everything
_NARROW = (0, 3, 4, 5)  # columns of the table that a smaller one shows


def profile(
    artefact: Path,
    *,
    on: str = "local",
    threads: int | None = None,
    minutes: float = 0.0,
    power: str | None = None,
    power_csv: Path | None = None,
    kernels: int = SHOWN,
    html: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure an artefact: whole runs, then single kernels in a run of their own, memory and energy.

    Args:
        artefact: A folder or .zip.
        on: Where: "local" is this machine; installed packages add places.
        threads: Of the engine; the manifest's number when not given.
        minutes: Run on for so long after that: does it slow down when it gets warm?
        power: Figures that you state, "idle=2.7,active=4.1,tx=5.0" in watts; they are labelled as stated.
        power_csv: Log of a USB power meter that records meanwhile.
        kernels: How many kernels the table shows, the longest first.
        html: Write a page with the plots.
        out: Write the whole profile as JSON, for `headtail plan`.
        json: Print the whole profile as JSON.
    """
    if html is not None and (find_spec("jinja2") is None or find_spec("matplotlib") is None):
        raise MissingDependencyError(
            "Wanted jinja2 and matplotlib for --html, found not both. Install them: pip install 'headtail[report]'."
        )
    opened = open_artefact(artefact)
    options = ProfileOptions(threads=threads, minutes=minutes, power=power, power_csv=power_csv)
    place = find_place(on)
    with Console(stderr=True).status(f"measuring {opened.manifest.model.name} on {on}"):
        found = place.profile(opened, options)
    if out is not None:
        out.write_bytes(dump_profile(found))
    if html is not None:
        from orchestrator.profile_report import render

        html.write_text(render(found), encoding="utf-8")
    print_json(found) if json else _print(found, kernels)


def _print(found: Profile, count: int) -> None:
    print_fields(f"{found.model} ({found.precision}) on {found.board}", facts(found))
    if not found.kernels:
        return
    rows = [
        (
            label(kernel),
            kernel.op,
            kernel.kind,
            format_time(kernel.latency.p50, found.unit),
            format_time(kernel.latency.p90, found.unit),
            f"{kernel.latency.p50 / found.kernel_sum:.1%}",
            f"{kernel.macs:,}" if kernel.macs else None,
            format_bytes(kernel.bytes),
        )
        for kernel in costliest(found.kernels, count)
    ]
    rest = len(found.kernels) - len(rows)
    if rest > 0:
        left = found.kernel_sum - sum(one.latency.p50 for one in costliest(found.kernels, count))
        rows.append(
            (
                f"{rest} more (--kernels)",
                None,
                "",
                format_time(left, found.unit),
                "",
                f"{left / found.kernel_sum:.1%}",
                None,
                None,
            )
        )
    columns = ("nodes of your graph", "kernel", "class", f"p50 {found.unit}", "p90", "share", "MAC", "bytes")
    shown = range(len(columns)) if terminal_width() >= _WIDE else _NARROW
    print_table(
        "Kernels that take most time",
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        numbers=True,
    )
