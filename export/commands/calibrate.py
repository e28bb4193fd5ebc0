"""`headtail calibrate`: measure small networks on a board, so that others can be predicted for it."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export.calibrate import CHAINS, fit, measure_chains, read_profiles, write_chains
from export.chain_nets import Precision
from export.commands.output import wide_console
from split.predict import Calibration, KernelClass, dump_calibration


def calibrate(
    *,
    precision: Precision = "int8",
    threads: int = 1,
    chains: int = CHAINS,
    write: Path | None = None,
    profiles: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Fit a roofline for each kernel class from chains of convolutions that are measured on the board.

    On this machine it takes less than a minute. For another board: `--write DIR` here, `edge-agent profile` of each chain
    there, `--profiles DIR` with what it wrote.

    Args:
        precision: Of the networks that will be predicted.
        threads: Of the engine.
        chains: How many networks.
        write: Only write the chains as artefacts into this folder.
        profiles: Folder with profiles of chains measured on another board.
        out: Write the calibration, for `headtail plan --device-calibration`.
        json: Print the calibration as JSON.
    """
    if write is not None:
        for path in write_chains(write, precision=precision, count=chains):
            sys.stdout.write(f"{path}\n")
        return
    with Console(stderr=True).status("measuring") as status:
        measured = (
            read_profiles(profiles)
            if profiles is not None
            else measure_chains(precision=precision, threads=threads, count=chains, on_step=status.update)
        )
    found = fit(measured)
    if out is not None:
        out.write_bytes(dump_calibration(found))
    if json:
        sys.stdout.buffer.write(dump_calibration(found))
    else:
        _print(found, len(measured.profiles))


def _print(found: Calibration, networks: int) -> None:
    console = wide_console()
    engine = "" if found.engine is None else f", {found.engine.name} {found.engine.version}"
    table = Table(
        title=f"{found.board}, {found.precision}, {found.threads} thread(s){engine}: {networks} networks",
        title_justify="left",
    )
    for name in ("class", "kernels", "GMAC/s", "GB/s", "overhead us", "mean error", "within 10 %", "90 % interval"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for one in (*found.classes, found.other):
        table.add_row(one.kind, *_cells(one))
    console.print(table)
    low, high = (f"{value:.2f}" for value in (found.interval.low, found.interval.high))
    console.print(
        f"Whole networks: {found.whole:.3f} times the sum of kernels, 90 % of left-out networks within {low} to {high}.",
        highlight=False,
    )


def _cells(one: KernelClass) -> list[str]:
    roofline = one.roofline
    return [
        str(one.samples),
        "-" if roofline.macs_per_ms is None else f"{roofline.macs_per_ms / 1e6:.1f}",
        "-" if roofline.bytes_per_ms is None else f"{roofline.bytes_per_ms / 1e6:.1f}",
        f"{1e3 * roofline.overhead_ms:.1f}",
        "-" if one.mape is None else f"{one.mape:.1%}",
        "-" if one.within_10 is None else f"{one.within_10:.0%}",
        f"{one.interval.low:.2f} .. {one.interval.high:.2f}",
    ]
