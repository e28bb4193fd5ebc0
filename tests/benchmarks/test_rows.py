"""Rows: a verdict follows from value, bar and direction alone, and nothing that was measured is lost."""

import subprocess

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rows import (
    Circumstances,
    Measurement,
    RowError,
    commit,
    device_text,
    holds,
    make_row,
    merge_rows,
    parse_measurement,
    read_rows,
    write_rows,
)

WHERE = Circumstances("make bench-foundation", "0123456789ab", "a machine", "2026-01-01T00:00:00Z")
numbers = st.floats(-1e9, 1e9) | st.integers(-(10**9), 10**9)


def measurement(name="speed", value=0.5, **changes):
    values = {"what": "int8 against fp32", "unit": "x", "direction": "<=", "bar": 0.6}
    return Measurement(id=name, value=value, **{**values, **changes})


def row(name="speed", value=0.5, **changes):
    return make_row(measurement(name, value, **changes), WHERE)


@given(value=numbers, bar=numbers)
def test_the_directions_agree_with_each_other(value, bar):
    below, above, equal = (holds(value, direction, bar) for direction in ("<=", ">=", "=="))
    assert below or above
    assert equal == (below and above)


@pytest.mark.parametrize("direction", ["<=", ">=", "=="])
def test_what_was_not_measured_holds_no_bar(direction):
    assert holds(None, direction, 1.0) is False


def test_info_has_no_bar_and_no_verdict():
    assert holds(3.0, "info", None) is None
    for direction, bar in (("info", 1.0), ("<=", None)):
        with pytest.raises(RowError):
            holds(1.0, direction, bar)


@given(
    old=st.lists(st.tuples(st.sampled_from("abcd"), numbers), unique_by=lambda one: one[0]),
    new=st.lists(st.tuples(st.sampled_from("bcde"), numbers), unique_by=lambda one: one[0]),
)
def test_a_merge_keeps_every_id_once_and_prefers_the_new_row(old, new):
    merged = merge_rows([row(name, value) for name, value in old], [row(name, value) for name, value in new])
    assert {one.id: one.value for one in merged} == {**dict(old), **dict(new)}
    assert len({one.id for one in merged}) == len(merged)
    assert [one.id for one in merged][: len(old)] == [name for name, _ in old]


def test_rows_survive_the_file_and_failing_rows_stay(tmp_path):
    rows = [row(), row("slow", 0.9), row("unknown", None), row("free", 1.0, direction="info", bar=None)]
    path = tmp_path / "results" / "foundation.json"
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert [one.holds for one in rows] == [True, False, False, None]
    assert [one.name for one in path.parent.iterdir()] == ["foundation.json"]


def test_a_verdict_that_was_typed_in_is_refused(tmp_path):
    path = tmp_path / "foundation.json"
    write_rows(path, [msgspec.structs.replace(row("slow", 0.9), holds=True)])
    with pytest.raises(RowError, match="slow"):
        read_rows(path)


def test_unknown_fields_are_refused_in_files_and_from_parts(tmp_path):
    path = tmp_path / "foundation.json"
    path.write_bytes(b'[{"id": "a", "colour": "red"}]')
    with pytest.raises(RowError, match=r"foundation\.json"):
        read_rows(path)
    good = msgspec.to_builtins(measurement())
    assert parse_measurement("export", good) == measurement()
    for bad in ({**good, "holds": True}, {**good, "value": "fast"}, {**good, "id": "No Spaces"}):
        with pytest.raises(RowError, match="export"):
            parse_measurement("export", bad)


def test_an_emulated_device_is_said_to_be_emulated():
    one = make_row(measurement(emulated="Raspberry Pi 4 (qemu-user)"), WHERE)
    assert one.device == "Raspberry Pi 4 (qemu-user), emulated on a machine"


def test_the_device_text_names_processor_and_virtual_machine(tmp_path):
    x86 = tmp_path / "x86"
    x86.write_text("model name\t: Fast CPU\nflags\t\t: fpu hypervisor sse\n\nmodel name\t: Fast CPU\n")
    arm = tmp_path / "arm"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd\n\nModel\t\t: Raspberry Pi 4 Model B\n")
    assert device_text(x86).startswith("Fast CPU (virtual machine), ")
    assert device_text(arm).startswith("Raspberry Pi 4 Model B, ")


def test_a_dirty_tree_is_said_but_results_do_not_make_it_dirty(tmp_path):
    def git(*arguments):
        settings = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", "-C", str(tmp_path), *settings, *arguments], check=True, capture_output=True, timeout=30)

    assert commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean) == 12
    write_rows(tmp_path / "benchmarks" / "results" / "foundation.json", [row()])
    assert commit(tmp_path) == clean
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"
