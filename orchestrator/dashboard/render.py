"""Pages and their parts as HTML. A part is rendered at most once a second, however many people look."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.commands.output import format_bytes
from orchestrator.dashboard.live import GROUPS

TEMPLATES = Path(__file__).parent / "templates"
# Parts of each kind of page that are sent again when they change.
PARTS = {
    "overview": ("tiles", "alerts", "rollouts", "models", "tails", "devices"),
    "device": ("device",),
    "rollout": ("rollout",),
}
_LIFE_S = 0.9


class Renderer:
    """Renders pages; `read` gives what a kind of page shows."""

    def __init__(self, read: Callable[[str, str], Any]) -> None:
        self._read = read
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {"ms": format_ms, "bytes": _bytes, "percent": _percent, "ago": _ago, "left": _left}
        self._environment.globals |= {"GROUPS": tuple(GROUPS)}
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}

    def parts(self, kind: str, name: str) -> dict[str, str]:
        """The parts of a page by name.

        Raises:
            EdgeError: What it shows cannot be read.
        """
        with self._lock:
            now = time.monotonic()
            kept = self._kept.get((kind, name))
            if kept is not None and now - kept[0] < _LIFE_S:
                return kept[1]
            page = self._read(kind, name)
            parts = {part: self._environment.get_template(f"{part}.html.j2").render(page=page) for part in PARTS[kind]}
            self._kept = {key: value for key, value in self._kept.items() if now - value[0] < 10}
            self._kept[(kind, name)] = (now, parts)
            return parts

    def page(self, kind: str, name: str) -> str:
        """A whole page.

        Raises:
            EdgeError: As `parts`.
        """
        parts = self.parts(kind, name)
        return self._environment.get_template("page.html.j2").render(kind=kind, name=name, parts=parts)

    def error(self, text: str) -> str:
        """A page that says what is wrong."""
        return self._environment.get_template("error.html.j2").render(text=text)


def format_ms(value: float | None) -> str:
    """Milliseconds with three digits or so."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def _bytes(value: float | None) -> str:
    return "–" if value is None else str(format_bytes(int(value)))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"


def _ago(at_ms: int | None, now_ms: int) -> str:
    return "never" if at_ms is None else f"{_left(max(0, now_ms - at_ms) / 1000)} ago"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
