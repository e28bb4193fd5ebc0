"""Pictures from folders, archives and functions, and everything that can be wrong with them."""

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from edge_runtime.preprocess import decode_image
from split.augment import Augmentation, augment, centre, draw
from split.training_data import DataOptions, PictureSet, TrainingDataError, open_pictures

SIZE = DataOptions(size=16)


def _jpeg(colour, size=(20, 24)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("b_green", (0, 255, 0)), ("a_red", (255, 0, 0))):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(_jpeg(colour))
        (tmp_path / name / "inner" / "2.png").write_bytes(_jpeg(colour, (16, 16)))
    return tmp_path


def test_folders_are_classes_in_alphabetical_order(folder):
    data = open_pictures(folder, SIZE)
    assert data.classes == ("a_red", "b_green")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 16, 16)
    assert data.images[0, 0].float().mean() > 250 > 5 > data.images[0, 1].float().mean()


def test_grey_of_16_bits_is_read_as_a_device_reads_it(folder):
    file, grey = folder / "a_red" / "0.png", np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    found = open_pictures(folder, SIZE).images[0].permute(1, 2, 0).numpy()
    assert (found == grey[..., np.newaxis]).all()
    assert (found == decode_image(file.read_bytes())).all()


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 16, 16, 3), np.float32), r"float32 \(2, 16, 16, 3\)"),
        (np.zeros((2, 3, 16, 16), np.uint8), r"uint8 \(2, 3, 16, 16\)"),
        (np.zeros((2, 16, 16), np.uint8), r"uint8 \(2, 16, 16\)"),
        (np.uint8(0), r"uint8 \(\)"),
    ],
)
def test_arrays_that_are_no_pictures_are_not_damaged_ones(tmp_path, images, found):
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1])
    with pytest.raises(TrainingDataError, match=rf"uint8 \(n, height, width, 3\).*x\.npz, found {found}"):
        open_pictures(tmp_path / "x.npz", SIZE)


def test_damaged_pictures_are_skipped_with_their_names_or_refused(folder, caplog):
    (folder / "a_red" / "3.jpg").write_bytes(b"no picture")
    (folder / "b_green" / "4.jpg").write_bytes(_jpeg((9, 9, 9))[:300])
    with caplog.at_level(logging.WARNING):
        data = open_pictures(folder, SIZE)
    assert data.skipped == ("a_red/3.jpg", "b_green/4.jpg")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert "Skipped 2 of 6" in caplog.text
    assert "a_red/3.jpg" in caplog.text
    with pytest.raises(TrainingDataError, match=r"a_red/3.jpg"):
        open_pictures(folder, DataOptions(size=16, strict=True))


def test_one_class_or_no_picture_is_refused(folder, tmp_path):
    for one in (folder / "a_red").rglob("*.*"):
        one.write_bytes(b"")
    with pytest.raises(TrainingDataError, match="at least 2 classes"):
        open_pictures(folder, SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingDataError, match="one folder for each class"):
        open_pictures(tmp_path / "empty", SIZE)
    with pytest.raises(TrainingDataError, match="found none"):
        open_pictures(tmp_path / "nowhere", SIZE)


def test_more_pictures_than_memory_is_refused_before_decoding(folder):
    with pytest.raises(TrainingDataError, match="found 3072"):
        open_pictures(folder, DataOptions(size=16, max_bytes=3071))


def test_archives_of_files_and_of_pictures(tmp_path):
    blobs = [_jpeg((255, 0, 0)), _jpeg((0, 0, 255))]
    offset = np.cumsum([0, *map(len, blobs)])
    np.savez(tmp_path / "a.npz", data=np.frombuffer(b"".join(blobs), np.uint8), offset=offset, label=[0, 1])
    data = open_pictures(tmp_path / "a.npz", SIZE)
    assert data.images[1, 2].float().mean() > 240
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 16, 16, 3), np.uint8), kind=[0, 1, 2])
    assert len(open_pictures(tmp_path / "b.npz", DataOptions(size=16, label_key="kind"))) == 3
    with pytest.raises(TrainingDataError, match="--label-key"):
        open_pictures(tmp_path / "b.npz", SIZE)
    with pytest.raises(TrainingDataError, match=r"0 to 1 .* found 0 to 2"):
        open_pictures(tmp_path / "b.npz", DataOptions(size=16, label_key="kind", classes=2))
    np.savez(tmp_path / "c.npz", data=np.zeros(3, np.uint8), offset=np.array([0, 9]), label=[0])
    with pytest.raises(TrainingDataError, match="rising"):
        open_pictures(tmp_path / "c.npz", SIZE)
    np.savez(tmp_path / "d.npz", images=np.array([{}], object), label=[0])
    with pytest.raises(TrainingDataError, match="pickled"):
        open_pictures(tmp_path / "d.npz", SIZE)


def test_functions_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_pictures.py").write_text(
        "import numpy as np\ndef load():\n    return [np.full((16, 20, 3), i, np.uint8) for i in range(4)], [0, 1, 0, 1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = open_pictures("own_pictures:load", SIZE)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(TrainingDataError, match="'other'"):
        open_pictures("own_pictures:other", SIZE)


def test_crops_and_flips_are_pixels_of_the_picture():
    images = torch.arange(2 * 3 * 10 * 10, dtype=torch.uint8).reshape(2, 3, 10, 10)
    plain = Augmentation(6, "none", mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((centre(images, plain) * 255).round().byte(), images[:, :, 2:8, 2:8])
    for seed in range(20):
        crop = (augment(images, Augmentation(6, "crop", 0, (0, 0, 0), (1, 1, 1)), draw(2, seed)) * 255).round().byte()
        windows = images.unfold(2, 6, 1).unfold(3, 6, 1)  # (2, 3, 5, 5, 6, 6)
        both = torch.cat([windows, windows.flip(5)], 2)
        for picture, candidates in zip(crop, both, strict=True):
            flat = candidates.permute(1, 2, 0, 3, 4).reshape(-1, 3, 6, 6)
            assert (flat == picture).flatten(1).all(1).any()


def test_resized_crops_stay_within_the_values():
    images = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8)
    out = augment(images, Augmentation(12, "resized", mean=(0, 0, 0), std=(1, 1, 1)), draw(8, 3))
    assert out.shape == (8, 3, 12, 12)
    assert -1e-5 <= float(out.min()) <= float(out.max()) <= 1 + 1e-5


def test_arrays_with_wrong_labels_are_refused():
    with pytest.raises(TrainingDataError, match="one integer class id"):
        PictureSet.of_arrays(np.zeros((2, 3, 4, 4), np.uint8), [0.5, 1])


def test_colour_keeps_grey_pictures_grey_and_nothing_changes_without_it():
    images = torch.full((64, 3, 6, 6), 100, dtype=torch.uint8)
    plain = Augmentation(6, "none", mean=(0, 0, 0), std=(1, 1, 1), colour=0.3)
    out = augment(images, plain, draw(64, 0)) * 255
    assert torch.allclose(out, out[:, :1, :1, :1].expand_as(out), atol=1e-3)
    assert out.min() >= 70 - 1e-3
    assert out.max() <= 130 + 1e-3
    assert out.std() > 5
    assert torch.equal(centre(images, plain), centre(images, Augmentation(6, "none", mean=(0, 0, 0), std=(1, 1, 1))))


def test_half_of_mixed_pictures_stay_and_the_others_lie_between_two_neighbours():
    images = (torch.arange(256) % 2 * 200).to(torch.uint8)[:, None, None, None].expand(256, 3, 4, 4)
    mixed = augment(images, Augmentation(4, "none", mean=(0, 0, 0), std=(1, 1, 1), mixes=True), draw(256, 1)) * 255
    kept = (mixed - images).abs().amax((1, 2, 3)) < 1e-3
    assert 0.35 < kept.float().mean() < 0.65
    assert mixed.min() >= -1e-3
    assert mixed.max() <= 200 + 1e-3
