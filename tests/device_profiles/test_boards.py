"""Board files: every one loads, unknown stays unknown, and errors name file and field."""

import json

import pytest

from device_profiles import BoardError, list_boards, load_board, load_board_file
from device_profiles.errors import path_problem
from device_profiles.load import this_board_id

BOARDS = list_boards()


def test_the_shipped_boards_are_all_there():
    ids = {board.id for board in BOARDS}
    assert len(ids) == 41
    assert {"linux-x86-64", "linux-aarch64", "rpi-5-4gb", "rpi-5-8gb", "qemu-mps2-an385", "qemu-mps2-an505"} <= ids


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_every_board_says_where_its_figures_come_from(board):
    assert board.source
    for name in board.sources:
        assert board.source_of(name) == board.sources[name]
    assert board.source_of("cpu_clock_hz") == board.sources.get("cpu_clock_hz", board.source)


@pytest.mark.parametrize("board", [b for b in BOARDS if b.is_microcontroller], ids=lambda board: board.id)
def test_microcontrollers_have_on_chip_memory(board):
    assert board.sram_bytes is not None
    assert board.sram_bytes > 0


def test_the_board_that_locks_up_is_marked_unusable():
    assert [board.id for board in BOARDS if not board.usable] == ["qemu-mps2-an521"]


@pytest.mark.parametrize(("machine", "board"), [("x86_64", "linux-x86-64"), ("aarch64", "linux-aarch64")])
def test_this_is_the_machine_at_hand(machine, board):
    assert this_board_id(machine) == board


def test_a_32_bit_machine_is_refused_by_name():
    with pytest.raises(BoardError, match="armv7l"):
        this_board_id("armv7l")


def test_an_unknown_board_names_its_neighbours():
    with pytest.raises(BoardError, match=r"rpi-5-8gb"):
        load_board("rpi5")


@pytest.mark.parametrize("name", ["../secret", "", "a/b", "x" * 100])
def test_a_board_id_never_leaves_the_folder(name):
    with pytest.raises(BoardError):
        load_board(name)


def test_a_user_file_adds_a_board(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "headtail" / "boards"
    folder.mkdir(parents=True)
    (folder / "my-board.json").write_text(
        json.dumps({"id": "my-board", "name": "Mine", "kind": "mcu", "source": "datasheet"})
    )
    assert load_board("my-board").sram_bytes is None
    assert "my-board" in {board.id for board in list_boards()}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"id": "b", "name": "B", "kind": "mcu", "source": "s", "sramm_bytes": 1}', "sramm_bytes"),
        ('{"id": "b", "name": "B", "kind": "toaster", "source": "s"}', "toaster"),
        ('{"id": "b", "name": "B", "kind": "mcu", "source": "s", "sram_bytes": "big"}', "sram_bytes"),
        ('{"id": "other", "name": "B", "kind": "mcu", "source": "s"}', "other"),
        ('{"id": "b", "name": "B", "kind": "mcu", "source": "s", "sources": {"x": "y"}}', "x"),
        ("{", "truncated"),
        ('{"pad": "' + "x" * 70_000 + '"}', "at most"),
    ],
)
def test_a_bad_board_file_is_refused_by_field(tmp_path, content, word):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(BoardError, match=word):
        load_board_file(path)


def test_a_board_is_shown_with_units_and_what_is_unknown_in_one_line(capsys):
    from orchestrator.cli import run

    assert run(["devices", "rpi-4b-4gb"]) == 0
    text = capsys.readouterr().out
    assert "1.5 GHz" in text
    assert "4 GiB" in text
    assert text.count("unknown") == 1
    assert run(["devices"]) == 0
    assert "320 KiB" in capsys.readouterr().out  # stm32f746g-disco


def test_a_note_says_nothing_of_memory_that_is_known():
    assert not [one.id for one in list_boards() if one.ram_bytes is not None and "ram_bytes null" in (one.notes or "")]


def test_a_file_that_cannot_be_used_is_one_line_and_other_errors_stay():
    missing = FileNotFoundError(2, "No such file or directory", "/nowhere/plan.json")
    assert path_problem(missing) == (
        "FileNotFoundError: Wanted to use /nowhere/plan.json, found: No such file or directory. "
        "Check the path and its permissions."
    )
    assert path_problem(ConnectionRefusedError(111, "Connection refused")) is None
    assert path_problem(OSError("no number")) is None
