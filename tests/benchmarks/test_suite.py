"""The frame around the parts: a part that is missing or fails is an error, and costs no other part's rows."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from benchmarks import suite
from benchmarks.rows import Circumstances, Measurement, RowError, make_row, read_rows, write_rows
from benchmarks.suite import Part, Suite

SUITE = Suite("some", "Some figures.", {"rtt": Part("fake_part", 1), "fuzz": Part("other_part", 1)})
WHERE = Circumstances("command", "0123456789ab", "a machine", "2026-01-01T00:00:00Z")


def figure(name, value=1.0, bar=2.0):
    return {"id": name, "what": name, "value": value, "unit": "s", "direction": "<=", "bar": bar}


def rows_of(*names, value=1.0):
    return [make_row(Measurement(**figure(name, value)), WHERE) for name in names]


@pytest.fixture
def parts(monkeypatch):
    """Replace what `measure` returns: name of the part -> rows, or an error."""

    def install(found):
        def measure(self, part, where):
            for one in found[part]:
                if isinstance(one, Exception):
                    raise one
                yield one

        monkeypatch.setattr(Suite, "measure", measure)

    return install


def test_a_part_alone_replaces_its_own_rows_only(tmp_path, parts):
    path = tmp_path / "some.json"
    write_rows(path, rows_of("a", "b"))
    parts({"rtt": rows_of("b", "c", value=9.0)})
    assert SUITE.run(["rtt"], path, keep=True) == 0
    assert [(row.id, row.value, row.holds) for row in read_rows(path)] == [
        ("a", 1.0, True),
        ("b", 9.0, False),
        ("c", 9.0, False),
    ]


def test_a_part_alone_drops_what_it_measures_no_more(tmp_path, parts):
    path = tmp_path / "some.json"
    own = replace(WHERE, command="python -m benchmarks.some rtt")
    gone, other = (make_row(Measurement(**figure(name)), where) for name, where in (("gone", own), ("other", WHERE)))
    write_rows(path, [gone, other])
    parts({"rtt": [RowError("no broker")]})
    assert SUITE.run(["rtt"], path, keep=True) == 1
    assert [row.id for row in read_rows(path)] == ["gone", "other"]  # who knows what it would have measured
    parts({"rtt": rows_of("a")})
    assert SUITE.run(["rtt"], path, keep=True) == 0
    assert [row.id for row in read_rows(path)] == ["other", "a"]


def test_a_complete_run_drops_what_nothing_measures_any_more(tmp_path, parts):
    path = tmp_path / "some.json"
    write_rows(path, rows_of("gone", "a"))
    parts({"rtt": rows_of("a"), "fuzz": rows_of("b")})
    assert SUITE.run(["rtt", "fuzz"], path, keep=False) == 0
    assert [row.id for row in read_rows(path)] == ["a", "b"]


def test_a_part_that_fails_is_named_and_costs_no_other_rows(tmp_path, parts, capsys):
    path = tmp_path / "some.json"
    write_rows(path, rows_of("gone"))
    parts({"rtt": [*rows_of("a"), RowError("no broker")], "fuzz": rows_of("b")})
    assert SUITE.run(["rtt", "fuzz"], path, keep=False) == 1
    assert [row.id for row in read_rows(path)] == ["gone", "a", "b"]  # what came before the failure is kept
    assert "rtt: RowError: no broker" in capsys.readouterr().err


def test_an_unknown_part_is_wrong_usage():
    with pytest.raises(SystemExit) as stopped:
        SUITE.main(["nonsense"])
    assert stopped.value.code == 2


def test_a_part_leaves_checked_measurements_as_lines_of_a_file(tmp_path, monkeypatch):
    output = tmp_path / "rows.jsonl"
    monkeypatch.setitem(sys.modules, "fake_part", SimpleNamespace(rows=lambda: iter([figure("a"), figure("b")])))
    assert SUITE.measure_here("rtt", output) == 0
    lines = output.read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Measurement).id for line in lines] == ["a", "b"]


@pytest.mark.parametrize("found", [[], [{"id": "a"}], [{**figure("a"), "holds": True}]])
def test_a_part_without_proper_rows_is_an_error(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "fake_part", SimpleNamespace(rows=lambda: found))
    assert SUITE.measure_here("rtt", tmp_path / "rows.jsonl") == 1


def test_a_missing_part_is_an_error(tmp_path):
    with pytest.raises(ModuleNotFoundError):
        SUITE.measure_here("rtt", tmp_path / "rows.jsonl")


CHILD = """
import pathlib, sys
pathlib.Path(sys.argv[-1]).write_text('{"id":"a","what":"a","value":1,"unit":"s","direction":"info"}\\n{"id":"cut')
sys.exit(STATUS)
"""


@pytest.mark.parametrize("status", [0, 1])
def test_rows_of_a_child_come_as_whole_lines_and_its_failure_is_named(monkeypatch, status):
    start = subprocess.Popen
    code = CHILD.replace("STATUS", str(status))
    monkeypatch.setattr(
        suite.subprocess, "Popen", lambda command, **rest: start([sys.executable, "-c", code, *command[2:]], **rest)
    )
    rows = SUITE.measure("rtt", WHERE)
    assert next(rows).id == "a"
    if status:
        with pytest.raises(RowError, match="exit status 1"):
            next(rows)
    else:
        assert list(rows) == []
