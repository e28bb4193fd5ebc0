"""The frame around the parts: a part that is missing or fails is an error, and costs no other part's rows."""

import sys
from types import SimpleNamespace

import msgspec
import pytest

from benchmarks import foundation
from benchmarks.rows import Circumstances, Measurement, RowError, make_row, read_rows, write_rows

WHERE = Circumstances("command", "0123456789ab", "a machine", "2026-01-01T00:00:00Z")


def figure(name, value=1.0, bar=2.0):
    return {"id": name, "what": name, "value": value, "unit": "s", "direction": "<=", "bar": bar}


def rows_of(*names, value=1.0):
    return [make_row(Measurement(**figure(name, value)), WHERE) for name in names]


@pytest.fixture
def parts(monkeypatch):
    """Replace what `measure` returns: name of the part -> rows, or an error."""

    def install(found):
        def measure(part, where):
            if isinstance(found[part], Exception):
                raise found[part]
            return found[part]

        monkeypatch.setattr(foundation, "measure", measure)

    return install


def test_a_part_alone_replaces_its_own_rows_only(tmp_path, parts):
    path = tmp_path / "foundation.json"
    write_rows(path, rows_of("a", "b"))
    parts({"rtt": rows_of("b", "c", value=9.0)})
    assert foundation.run_parts(["rtt"], path, keep=True) == 0
    assert [(row.id, row.value, row.holds) for row in read_rows(path)] == [
        ("a", 1.0, True),
        ("b", 9.0, False),
        ("c", 9.0, False),
    ]


def test_a_complete_run_drops_what_nothing_measures_any_more(tmp_path, parts):
    path = tmp_path / "foundation.json"
    write_rows(path, rows_of("gone", "a"))
    parts({"rtt": rows_of("a"), "fuzz": rows_of("b")})
    assert foundation.run_parts(["rtt", "fuzz"], path, keep=False) == 0
    assert [row.id for row in read_rows(path)] == ["a", "b"]


def test_a_part_that_fails_is_named_and_costs_no_other_rows(tmp_path, parts, capsys):
    path = tmp_path / "foundation.json"
    write_rows(path, rows_of("gone"))
    parts({"rtt": RowError("no broker"), "fuzz": rows_of("b")})
    assert foundation.run_parts(["rtt", "fuzz"], path, keep=False) == 1
    assert [row.id for row in read_rows(path)] == ["gone", "b"]
    assert "rtt: RowError: no broker" in capsys.readouterr().err


def test_an_unknown_part_is_wrong_usage():
    with pytest.raises(SystemExit) as stopped:
        foundation.main(["nonsense"])
    assert stopped.value.code == 2


def test_a_part_leaves_checked_measurements_in_a_file(tmp_path, monkeypatch):
    output = tmp_path / "rows.json"
    monkeypatch.setitem(sys.modules, "fake_part", SimpleNamespace(rows=lambda: [figure("a")]))
    monkeypatch.setitem(foundation.PARTS, "rtt", "fake_part")
    assert foundation.measure_here("rtt", output) == 0
    assert msgspec.json.decode(output.read_bytes(), type=list[Measurement]) == [Measurement(**figure("a"))]


@pytest.mark.parametrize("found", [[], [{"id": "a"}], [{**figure("a"), "holds": True}]])
def test_a_part_without_proper_rows_is_an_error(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "fake_part", SimpleNamespace(rows=lambda: found))
    monkeypatch.setitem(foundation.PARTS, "rtt", "fake_part")
    assert foundation.measure_here("rtt", tmp_path / "rows.json") == 1


def test_a_missing_part_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(foundation.PARTS, "rtt", "benchmarks.no_such_part")
    with pytest.raises(ModuleNotFoundError):
        foundation.measure_here("rtt", tmp_path / "rows.json")
