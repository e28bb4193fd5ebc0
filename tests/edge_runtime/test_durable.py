"""Folders that are replaced: whole at every moment, also where names cannot be exchanged."""

import threading

import pytest

from edge_runtime import durable


def staged(folder, content):
    folder.mkdir()
    (folder / "content").write_text(content)
    return folder


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_and_nothing_stays_beside_it(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(durable, "_exchange", lambda *_: False)
    target = tmp_path / "artefact"
    for content in ("first", "second"):
        durable.replace_folder(staged(tmp_path / ".artefact.1", content), target)
        assert (target / "content").read_text() == content
    assert [one.name for one in tmp_path.iterdir()] == ["artefact"]


def test_a_reader_finds_a_whole_folder_at_every_moment(tmp_path):
    target = staged(tmp_path / "artefact", "0")
    if not durable._exchange(target, staged(tmp_path / "other", "1")):
        pytest.skip("this system or its file system cannot exchange two names")
    missing, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            if not target.exists():
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(300):
            durable.replace_folder(staged(tmp_path / ".artefact.1", str(number)), target)
    finally:
        stop.set()
        reader.join()
    assert not missing


def test_names_that_cannot_be_exchanged_are_not(tmp_path):
    one = staged(tmp_path / "one", "1")
    assert not durable._exchange(one, tmp_path / "absent")
    assert (one / "content").read_text() == "1"
