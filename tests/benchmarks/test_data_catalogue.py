"""Third-party files: listed with source, licence and hash, and used only when they are the listed ones."""

import hashlib
from pathlib import PurePosixPath

import pytest

from benchmarks import data
from benchmarks.data import DataError, DataFile, check_file, data_folder, data_path, read_catalogue


def test_every_listed_file_names_a_source_a_commit_and_a_licence():
    catalogue = read_catalogue()
    paths = [PurePosixPath(file.path) for source in catalogue.sources for file in source.files]
    assert len(set(paths)) == len(paths) > 0
    assert not any(path.is_absolute() or ".." in path.parts for path in paths)
    for source in catalogue.sources:
        assert source.repository.startswith("https://")
        assert len(source.commit) >= 8
        assert source.licence


def test_a_file_is_refused_by_size_hash_or_absence(tmp_path):
    path = tmp_path / "model.tflite"
    wanted = DataFile(path="model.tflite", origin="root", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert "no such file" in check_file(path, wanted)
    path.write_bytes(b"abcd")
    assert "found 4 B" in check_file(path, wanted)
    path.write_bytes(b"abd")
    assert "sha256" in check_file(path, wanted)
    path.write_bytes(b"abc")
    assert check_file(path, wanted) is None


def test_an_unset_folder_and_an_unlisted_file_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADTAIL_DATA", "")
    with pytest.raises(DataError, match="HEADTAIL_DATA"):
        data_folder()
    monkeypatch.setenv("HEADTAIL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        data_path(data.SAMPLES)
    with pytest.raises(DataError, match=r"unlisted\.bin"):
        data_path("unlisted.bin")
    assert data.main() == 1


def test_an_unknown_field_of_the_catalogue_is_refused(tmp_path):
    path = tmp_path / "data.toml"
    path.write_text('colour = "red"\nsources = []\n')
    with pytest.raises(DataError, match="colour"):
        read_catalogue(path)


@pytest.mark.shared_data
def test_calibration_and_evaluation_share_no_picture():
    samples = data.imagenet_samples()
    assert (len(samples.calibration()), len(samples.evaluation())) == (100, 400)
    assert not set(samples.calibration()).intersection(samples.evaluation())
