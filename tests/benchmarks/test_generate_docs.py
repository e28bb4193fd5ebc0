"""Generated pages: never stale unnoticed, and failing rows are shown as failing."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.rows import Circumstances, Measurement, make_row, write_rows

ROOT = Path(__file__).parents[2]
PAGE = "# Title\n\nby hand\n\n<!-- generated: foundation -->\nstale table\n<!-- end -->\n\nby hand too\n"


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A project with two boards, a README with one table, and results."""
    boards = tmp_path / "device_profiles" / "data"
    boards.mkdir(parents=True)
    for name in ("rpi-4b", "qemu-mps2-an521"):
        shutil.copy(ROOT / "device_profiles" / "data" / f"{name}.json", boards)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    where = Circumstances("make bench-foundation", "0123456789ab", "a machine", "2026-01-02T00:00:00Z")
    figures = [
        Measurement(id="fast", what="a | b", value=1, unit="s", direction="<=", bar=2, peer="paho", peer_version="2.2"),
        Measurement(id="slow", what="worse", value=3.14159, unit="s", direction="<=", bar=2),
        Measurement(id="loss", what="on a link", value=None, unit="%", direction="<=", bar=2),
        Measurement(id="size", what="bytes", value=1234567, unit="B", direction="info"),
    ]
    results = tmp_path / "benchmarks" / "results" / "foundation.json"
    write_rows(results, [make_row(figure, where) for figure in figures])
    return tmp_path


def test_what_was_written_is_not_stale(docs, tree, capsys):
    assert docs.main(["--check"], tree) == 1
    stale = capsys.readouterr().err
    assert "README.md is stale" in stale
    assert "docs/devices.md is stale" in stale
    assert (tree / "README.md").read_text() == PAGE
    assert docs.main([], tree) == 0
    assert docs.main(["--check"], tree) == 0
    assert capsys.readouterr().err == ""


def test_a_table_shows_failing_rows_and_how_it_was_measured(docs, tree):
    docs.main([], tree)
    text = (tree / "README.md").read_text()
    assert text.startswith("# Title\n\nby hand\n\n<!-- generated: foundation -->\n")
    assert text.endswith("<!-- end -->\n\nby hand too\n")
    assert "stale table" not in text
    assert "| `fast` | a \\| b | 1 s | <= 2 s | yes | paho 2.2 |" in text
    assert "| `slow` | worse | 3.142 s | <= 2 s | **no** |  |" in text
    assert "| `loss` | on a link | not measured | <= 2 % | **no** |  |" in text
    assert "| `size` | bytes | 1,234,567 B |  |  |  |" in text
    assert "**2 of 4 do not hold**: slow, loss." in text
    assert "- All rows: `make bench-foundation`, on a machine, at commit `0123456789ab`, 2026-01-02." in text


def test_patterns_choose_rows(docs, tree):
    (tree / "README.md").write_text(PAGE.replace("foundation -->", "foundation f* size -->"))
    docs.main([], tree)
    text = (tree / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == ["fast", "size"]


def test_a_summary_counts_rows_and_names_those_that_do_not_hold(docs, tree):
    (tree / "README.md").write_text(PAGE.replace("foundation -->", "summary -->"))
    docs.main([], tree)
    text = (tree / "README.md").read_text()
    assert "| `make bench-foundation` | 3 | 1 | `slow`, `loss` (not measured) |" in text


def test_results_that_are_not_there_are_said_not_to_be(docs, tree):
    (tree / "README.md").write_text(PAGE.replace("foundation", "fleet"))
    docs.main([], tree)
    assert "Not measured yet: `make bench-fleet`." in (tree / "README.md").read_text()


@pytest.mark.parametrize(
    "page",
    [
        "<!-- generated: foundation -->\n",
        "<!-- generated: a -->\n<!-- generated: b -->\n<!-- end -->\n",
        "<!-- generated: ../../x -->\n<!-- end -->\n",
    ],
)
def test_a_broken_marker_is_a_named_error_and_changes_nothing(docs, tree, page, capsys):
    (tree / "README.md").write_text(page)
    assert docs.main([], tree) == 1
    assert "README.md" in capsys.readouterr().err
    assert (tree / "README.md").read_text() == page
    assert not (tree / "docs" / "devices.md").exists()


def test_an_edited_verdict_stops_the_pages(docs, tree, capsys):
    path = tree / "benchmarks" / "results" / "foundation.json"
    path.write_text(path.read_text().replace('"holds": false', '"holds": true'))
    assert docs.main([], tree) == 1
    assert "RowError" in capsys.readouterr().err


def test_the_devices_page_names_sources_units_and_what_is_not_usable(docs, tree):
    docs.main([], tree)
    text = (tree / "docs" / "devices.md").read_text()
    assert "2 boards are known" in text
    assert "QEMU mps2-an521 (**not usable**)" in text
    assert "- `cpu_clock_hz`: 1.5 GHz" in text
    assert "- `l2_cache_bytes`: 1 MiB" in text
    assert "- `idle_power_w`: 3.06 W" in text
    assert "raspberrypi/documentation" in text
    assert "unknown: `gpu`" in text


def test_the_pages_of_this_tree_name_every_board(docs):
    text = docs.devices_page(ROOT / "device_profiles" / "data")
    for path in (ROOT / "device_profiles" / "data").glob("*.json"):
        assert f"### {path.stem}\n" in text
