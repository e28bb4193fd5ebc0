"""Write what docs say of boards and measurements from the files that hold it.

    python scripts/generate_docs.py            rewrites docs/devices.md and the generated tables
    python scripts/generate_docs.py --check    writes nothing; exits 1 and names what is stale

A generated table stands between `<!-- generated: NAME [PATTERN...] -->` and `<!-- end -->` in README.md or docs/*.md.
NAME is a file of benchmarks/results; the patterns choose row ids (`rtt_*`). Rows that do not hold are shown as failing.
`summary` counts the rows of all files and names those that do not hold.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.rows import Row, read_rows
from device_profiles.errors import EdgeError
from device_profiles.load import load_board_file
from device_profiles.quantity import quantity
from device_profiles.schema import DeviceProfile

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[^\n]*?) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL)
_START = "<!-- generated:"
_KINDS = {
    "linux-gpu": "Linux boards with a GPU",
    "linux-cpu": "Linux boards and machines",
    "mcu": "Microcontrollers",
    "mcu-emulated": "Emulated microcontrollers",
}
_PLAIN = ("id", "name", "kind", "source", "sources", "usable", "notes", "runtimes")


class DocsError(EdgeError):
    """A page asks for a table that cannot be generated."""


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; 1 when something is stale or cannot be generated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    options = parser.parse_args(arguments)
    try:
        stale = {path: text for path, text in pages(root).items() if not path.is_file() or path.read_text() != text}
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for path, text in stale.items():
        name = path.relative_to(root)
        if options.check:
            print(f"{name} is stale: run `make bench-report` (python scripts/generate_docs.py)", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {name}")
    return 1 if stale and options.check else 0


def pages(root: Path) -> dict[Path, str]:
    """Every page with generated parts, as it should read.

    Raises:
        DocsError: A marker without its end, or without a name.
        RowError: A results file is not valid.
        BoardError: A board file is not valid.
    """
    found = {root / "docs" / "devices.md": devices_page(root / "device_profiles" / "data")}
    candidates = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    for path in candidates:
        if path not in found and path.is_file() and _START in path.read_text():
            found[path] = fill_tables(path.read_text(), root / "benchmarks" / "results", str(path.relative_to(root)))
    return found


def fill_tables(text: str, results: Path, where: str) -> str:
    """Replace what stands between the markers of a page.

    Raises:
        DocsError: A marker without its end, or without a name.
        RowError: A results file is not valid.
    """
    blocks = list(_BLOCK.finditer(text))
    if len(blocks) != text.count(_START) or any(_START in block["body"] for block in blocks):
        raise DocsError(f"Wanted `<!-- end -->` behind every `{_START} NAME -->`, found one without it in {where}.")

    def fill(block: re.Match[str]) -> str:
        name, *patterns = block["name"].split() or [""]
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise DocsError(f"Wanted the name of a results file in a marker, found {block['name']!r} in {where}.")
        if name == "summary":
            return f"{block[1]}{summary_table(results)}{block['end']}"
        rows = read_rows(results / f"{name}.json")
        chosen = [row for row in rows if not patterns or any(fnmatchcase(row.id, pattern) for pattern in patterns)]
        return f"{block[1]}{bench_table(name, chosen)}{block['end']}"

    return _BLOCK.sub(fill, text)


def bench_table(name: str, rows: Sequence[Row]) -> str:
    """Rows as a table, followed by command, device, commit and date of each group measured together."""
    if not rows:
        return f"\nNot measured yet: `make bench-{name}`.\n\n"
    lines = ["", "| id | what | measured | wanted | holds | against |", "| --- | --- | ---: | ---: | --- | --- |"]
    for row in rows:
        bar = "" if row.bar is None else f"{row.direction} {number(row.bar)} {row.unit}".rstrip()
        value = "not measured" if row.value is None else f"{number(row.value)} {row.unit}".rstrip()
        verdict = {True: "yes", False: "**no**", None: ""}[row.holds]
        peer = " ".join(part for part in (row.peer, row.peer_version) if part)
        cells = (f"`{row.id}`", row.what, value, bar, verdict, peer)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    failing = [row.id for row in rows if row.holds is False]
    lines.append("")
    if failing:
        lines += [f"**{len(failing)} of {len(rows)} do not hold**: {', '.join(failing)}.", ""]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.command, row.device, row.commit), []).append(row)
    for (command, device, commit), members in groups.items():
        days = sorted({row.date[:10] for row in members})
        day = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        subject = "All rows" if len(groups) == 1 else ", ".join(f"`{row.id}`" for row in members)
        lines.append(f"- {subject}: `{command}`, on {device}, at commit `{commit}`, {day}.")
    return "\n".join([*lines, "", ""])


def summary_table(results: Path) -> str:
    """How many rows of each results file hold their bar, and which do not.

    Raises:
        RowError: A results file is not valid.
    """
    lines = ["", "| measured by | rows with a bar | hold | do not hold |", "| --- | ---: | ---: | --- |"]
    for path in sorted(results.glob("*.json")):
        judged = [row for row in read_rows(path) if row.holds is not None]
        named = [f"`{row.id}`{' (not measured)' if row.value is None else ''}" for row in judged if not row.holds]
        cells = (f"`make bench-{path.stem}`", str(len(judged)), str(len(judged) - len(named)), ", ".join(named))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ""])


def number(value: float) -> str:
    """A figure for people: four digits below 1000, all digits of integers above it."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def devices_page(folder: Path) -> str:
    """docs/devices.md: a table for each kind of board, then every figure with its source.

    Raises:
        BoardError: A board file is not valid.
    """
    boards = [load_board_file(path) for path in sorted(folder.glob("*.json"))]
    lines = [
        "# Devices",
        "",
        "Generated by `scripts/generate_docs.py` from `device_profiles/data/`; change a board there, not here.",
        "",
        f"{len(boards)} boards are known. A dash is unknown, and unknown never means that something fits. Figures are what",
        "their sources say; this project has measured no physical board. `headtail devices BOARD` shows the same, and a file",
        "of the same form in `~/.config/headtail/boards/` (`$XDG_CONFIG_HOME/headtail/boards/`) adds a board of your own.",
    ]
    for kind, title in _KINDS.items():
        lines += ["", f"## {title}", "", *_overview([board for board in boards if board.kind == kind])]
    lines += ["", "## Figures and their sources"]
    for board in boards:
        lines += ["", f"### {board.id}", "", *_details(board)]
    return "\n".join(lines) + "\n"


def _overview(boards: Sequence[DeviceProfile]) -> list[str]:
    lines = [
        "| board | name | processor | clock | memory | SRAM | flash | runs |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for board in boards:
        name = board.name if board.usable else f"{board.name} (**not usable**)"
        cores = "" if board.cpu_cores is None else f", {board.cpu_cores} core{'s' if board.cpu_cores > 1 else ''}"
        cells = [f"[`{board.id}`](#{_anchor(board.id)})", name, "-" if board.cpu is None else f"{board.cpu}{cores}"]
        cells += [quantity(f, getattr(board, f)) for f in ("cpu_clock_hz", "ram_bytes", "sram_bytes", "flash_bytes")]
        lines.append("| " + " | ".join(_cell(cell) for cell in [*cells, ", ".join(board.runtimes) or "-"]) + " |")
    return lines


def _details(board: DeviceProfile) -> list[str]:
    fields = [field for field in DeviceProfile.__struct_fields__ if field not in _PLAIN]
    known = [field for field in fields if getattr(board, field) is not None]
    lines = [f"{board.name}. Source, where a line names no other: {board.source}."]
    if board.notes is not None:
        lines += ["", board.notes]
    lines.append("")
    for field in known:
        own = f" ({board.sources[field]})" if field in board.sources else ""
        lines.append(f"- `{field}`: {quantity(field, getattr(board, field))}{own}")
    if len(known) < len(fields):
        lines.append(f"- unknown: {', '.join(f'`{field}`' for field in fields if field not in known)}")
    return lines


def _anchor(title: str) -> str:
    """The anchor that a Markdown heading gets: lower case, no dots or plus signs."""
    return re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
