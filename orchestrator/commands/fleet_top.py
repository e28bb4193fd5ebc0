"""`headtail fleet top`: the dashboard in a terminal."""

import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from orchestrator.commands.output import format_bytes, print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.dashboard.collector import Collector
from orchestrator.dashboard.pages import Overview, overview
from orchestrator.fleet.fleet_file import find_broker, find_store
from orchestrator.fleet.store import Store

_COLOURS = {"online": "green", "stale": "yellow", "offline": "red", "never": "dim"}
_FIRST_S = 2.0
_WIDE = 110  # columns that all figures need


def top(
    *,
    broker: str | None = None,
    store: str | None = None,
    folder: Path | None = None,
    search: str = "",
    once: bool = False,
    json: bool = False,
) -> None:
    """Watch devices, models and tail workers in the terminal, until Ctrl-C.

    Args:
        broker: URL of the MQTT broker; that of the fleet when not given.
        store: URL of the database; that of the fleet when not given.
        folder: Folder of `headtail fleet up`.
        search: Show devices whose name, version or board holds this.
        once: Print one picture after two seconds and end, as it does where it does not print to a terminal.
        json: Print it as JSON; implies once.
    """
    opened = Store(store or find_store(folder))
    try:
        with Collector(broker or find_broker(folder)) as collector, until_stopped():
            overview(opened, collector)  # learns which model each device runs
            if once or json or not sys.stdout.isatty():
                time.sleep(_FIRST_S)
                page = overview(opened, collector, search)
                print_json(_as_json(page)) if json else Console().print(picture(page, Console().width))
                return
            with Screen(screen=True, refresh_per_second=2) as screen:
                while True:
                    screen.update(picture(overview(opened, collector, search), screen.console.width))
                    time.sleep(1)
    finally:
        opened.close()


def picture(page: Overview, width: int = 120) -> Group:
    """What a terminal of so many columns shows."""
    figures, summary = page.figures, page.summary
    head = Text.assemble(
        (f"{summary.by_status.get('online', 0)}/{summary.devices} online", "bold"),
        f"   {figures.per_second if figures.count else 0:.1f} answers/s   p50 {_ms(figures.p50_ms)}   p99 {_ms(figures.p99_ms)}"
        f"   by a tail {_percent(figures.remote_share)}   errors {figures.errors}",
        ("" if page.connected else "   no broker", "red"),
    )
    alerts = [Text(f"! {alert.text}", "red" if alert.level == "bad" else "yellow") for alert in page.alerts[:5]]
    return Group(head, *alerts, _devices(page, wide=width >= _WIDE), _tails(page))


def _devices(page: Overview, *, wide: bool) -> Table:
    table = Table(expand=True, box=None, header_style="dim")
    table.add_column("device", no_wrap=True, min_width=16)
    for column in ("board", "version") if wide else ("version",):
        table.add_column(column, no_wrap=True)
    for column in ("answers/s", "p50", *(("uplink", "tail") if wide else ()), "by a tail", "errors", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in page.devices[:40]:
        figures, view = line.figures, line.view
        stages = [_ms(figures.groups[index]) if figures.count else "-" for index in (3, 5)]
        table.add_row(
            Text(view.id, _COLOURS[view.status]),
            *([view.board] if wide else []),
            line.version,
            f"{figures.per_second:.1f}" if figures.count else "-",
            _ms(figures.p50_ms),
            *(stages if wide else []),
            _percent(figures.remote_share),
            str(figures.errors),
            format_bytes(view.heartbeat.rss_bytes if view.heartbeat else None) or "-",
        )
    return table


def _tails(page: Overview) -> Table:
    table = Table(expand=True, box=None, header_style="dim")
    table.add_column("tail worker", no_wrap=True)
    for column in ("answers/s", "waiting", "busy", "expired", "refused", "memory"):
        table.add_column(column, justify="right")
    for name, tail in page.tails.items():
        beat, rate = tail.beat, tail.answers_per_second
        numbers = (beat.waiting, beat.busy, beat.expired, beat.refused)
        table.add_row(
            name, "-" if rate is None else f"{rate:.1f}", *map(str, numbers), format_bytes(beat.rss_bytes) or "-"
        )
    return table


def _as_json(page: Overview) -> dict[str, object]:
    devices = [
        {"device": line.view.id, "status": line.view.status, "version": line.version, "figures": line.figures}
        for line in page.devices
    ]
    tails = {name: msgspec.to_builtins(tail.beat) for name, tail in page.tails.items()}
    return {"summary": page.summary, "figures": page.figures, "devices": devices, "tails": tails, "alerts": page.alerts}


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
