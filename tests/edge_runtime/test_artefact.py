"""Artefacts: round trip, and every way in which a hostile or damaged one is refused before a parser sees it."""

import os
import threading
import types
import zipfile

import msgspec
import numpy as np
import pytest

from edge_runtime import artefact as artefact_module
from edge_runtime.artefact import (
    ArtefactError,
    IntegrityError,
    open_artefact,
    pack_artefact,
    read_raw,
    write_artefact,
)
from edge_runtime.manifest import ManifestError, canonical_bytes


def test_what_is_written_is_what_is_opened(add_one):
    opened = open_artefact(add_one.folder)
    assert opened == add_one
    assert opened.id == add_one.id
    assert opened.key == opened.id[:16]


def test_the_zip_holds_the_same_artefact_and_is_reproducible(add_one, tmp_path):
    first = pack_artefact(add_one, tmp_path / "a.zip").read_bytes()
    assert pack_artefact(add_one, tmp_path / "b.zip").read_bytes() == first
    assert open_artefact(tmp_path / "a.zip").id == add_one.id
    assert open_artefact(tmp_path / "a.zip").id == add_one.id  # again, over what the first call unpacked


def test_golden_files_come_back_as_arrays(add_one):
    spec = add_one.manifest.inputs[0]
    assert read_raw(add_one, "golden/x0.bin", spec).tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_an_artefact_replaces_an_artefact_but_nothing_else(add_one, tmp_path, draft):
    manifest, files = draft
    write_artefact(add_one.folder, manifest(), files())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(ArtefactError, match="other files"):
        write_artefact(tmp_path / "home", manifest(), files())
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


def test_a_place_where_nothing_can_be_written_is_named(tmp_path, draft):
    manifest, files = draft
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "out"):
        with pytest.raises(ArtefactError, match="--out"):
            write_artefact(folder, manifest(), files())


def test_of_two_that_write_at_once_one_is_there_whole(tmp_path, draft):
    manifest, files = draft
    done = []

    def write(threads):
        for _ in range(25):
            engine = msgspec.structs.replace(manifest().engine, threads=threads)
            done.append(write_artefact(tmp_path / "out", manifest(engine=engine), files()))

    workers = [threading.Thread(target=write, args=(threads,)) for threads in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == 50
    assert open_artefact(tmp_path / "out").id in {one.id for one in done}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_nothing(tmp_path, draft):
    manifest, files = draft
    with pytest.raises(ManifestError, match=r"other\.onnx"):
        write_artefact(tmp_path / "out", manifest(entry="other.onnx"), files())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_with_damaged_or_unusual_compression_is_named(add_one, tmp_path, method):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", method) as bundle:
        bundle.writestr("manifest.json", (add_one.folder / "manifest.json").read_bytes())
    data = bytearray(archive.read_bytes())
    data[60:90] = bytes(30)  # inside of the compressed member
    archive.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"a\.zip"):
        open_artefact(archive)


def test_a_zip_in_a_folder_that_takes_no_files_is_named(add_one, tmp_path, monkeypatch):
    archive = pack_artefact(add_one, tmp_path / "a.zip")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ArtefactError, match="beside itself"):
        open_artefact(archive)


def test_an_edited_byte_is_refused(add_one):
    data = bytearray(add_one.entry.read_bytes())
    data[len(data) // 2] ^= 1
    add_one.entry.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.onnx.*edited"):
        open_artefact(add_one.folder)


def test_a_truncated_file_is_refused(add_one):
    add_one.entry.write_bytes(add_one.entry.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"Wanted \d+ B in model\.onnx"):
        open_artefact(add_one.folder)


def test_a_missing_file_is_refused(add_one):
    add_one.path("golden/x0.bin").unlink()
    with pytest.raises(IntegrityError, match=r"golden/x0\.bin"):
        open_artefact(add_one.folder)


def test_an_extra_file_is_refused(add_one):
    (add_one.folder / "weights.data").write_bytes(b"external data")
    with pytest.raises(IntegrityError, match=r"weights\.data"):
        open_artefact(add_one.folder)


def test_a_symbolic_link_is_refused(add_one, tmp_path):
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(add_one.entry.read_bytes())
    add_one.entry.unlink()
    add_one.entry.symlink_to(outside)
    with pytest.raises(IntegrityError, match="link"):
        open_artefact(add_one.folder)


def test_a_linked_folder_is_refused(add_one, tmp_path):
    os.rename(add_one.folder / "golden", tmp_path / "golden")
    (add_one.folder / "golden").symlink_to(tmp_path / "golden")
    with pytest.raises(IntegrityError, match="link"):
        open_artefact(add_one.folder)


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a//b", "a/./b", "", "a/b/c/d/e", "nul\x00l", "manifest.json", ".hidden"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, draft, path):
    manifest, _ = draft
    draft_one = manifest()
    entry = {"path": path, "sha256": "0" * 64, "size": 0}
    folder = tmp_path / "evil"
    folder.mkdir()
    raw = canonical_bytes(draft_one).replace(b'"files":[]', b'"files":[' + canonical_bytes(entry) + b"]")
    (folder / "manifest.json").write_bytes(raw)
    with pytest.raises(ManifestError):
        open_artefact(folder)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(ArtefactError, match="found nothing"):
        open_artefact(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        open_artefact(tmp_path)


def _zip(path, members, kind=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if kind is not None:
                info.external_attr = kind << 16
            bundle.writestr(info, data)
    return path


@pytest.mark.parametrize("name", ["../evil", "/abs", "a/../../evil", "c:\\evil"])
def test_a_zip_that_escapes_is_refused(tmp_path, name):
    archive = _zip(tmp_path / "a.zip", [(name, b"x")])
    with pytest.raises(ArtefactError):
        open_artefact(archive)
    assert not (tmp_path.parent / "evil").exists()


def test_a_zip_with_a_link_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="link"):
        open_artefact(_zip(tmp_path / "a.zip", [("model.onnx", b"/etc/passwd")], kind=0o120777))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with pytest.raises(ArtefactError, match="unpacks to at most"):
        open_artefact(_zip(tmp_path / "a.zip", [("model.onnx", bytes(20_000_000))]))
    assert not (tmp_path / "a.zip.d").exists()


def test_a_zip_of_many_files_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="at most 512 members"):
        open_artefact(_zip(tmp_path / "a.zip", [(f"f{i}", b"") for i in range(600)]))


def test_a_damaged_zip_is_refused(add_one, tmp_path):
    archive = pack_artefact(add_one, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ArtefactError):
        open_artefact(archive)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "add-one"]


def test_a_golden_file_of_another_size_is_refused(add_one):
    spec = add_one.manifest.inputs[0]
    with pytest.raises(IntegrityError):
        read_raw(add_one, "model.onnx", spec)
    assert read_raw(add_one, "golden/x0.bin", spec).dtype == np.float32


def test_a_zip_that_needs_more_room_than_there_is_is_refused(add_one, tmp_path, monkeypatch):
    archive = pack_artefact(add_one, tmp_path / "packed.zip")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: types.SimpleNamespace(free=1000))
    with pytest.raises(ArtefactError, match="room to unpack"):
        open_artefact(archive)


def test_a_file_that_may_not_be_read_is_named(add_one, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artefact_module, "file_sha256", refuse)  # root may read everything
    with pytest.raises(ArtefactError, match=r"Permission denied.*x0\.bin"):
        open_artefact(add_one.folder)
