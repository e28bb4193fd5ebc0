import numpy as np
import pytest
from PIL import Image

from edge_runtime.manifest import Preprocessing, TensorSpec
from export import samples
from export.calibration import MAX_SAMPLES, decode_calibration, open_calibration, tensors_sha256
from export.errors import CalibrationError
from export.samples import open_samples

SPEC = TensorSpec(name="x", engine_name="x", dtype="float32", shape=(1, 3, 8, 8), layout="nchw", semantic="image")
PICTURES = Preprocessing(resize_short=None, crop=(8, 8), mean=(127.0,) * 3, std=(128.0,) * 3)


def _pictures(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10, 12, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / name)


def _decode(path, *, specs=(SPEC,), preprocessing=None):
    return decode_calibration(open_calibration(path), specs, preprocessing, method="test")


def test_none_given_is_an_error_that_says_what_to_give():
    with pytest.raises(CalibrationError, match="--calibration DIR"):
        open_calibration(None)


def test_pictures_are_read_in_a_fixed_order_and_prepared(tmp_path):
    _pictures(tmp_path, ["b/2.png", "a/9.png", "a/10.jpg"])
    data = _decode(tmp_path, preprocessing=PICTURES)
    assert data.record.count == 3
    assert data.record.source == tmp_path.name
    assert data.record.sha256 == tensors_sha256(data.samples)
    values = [float(arrays[0][0, 0, 0, 0]) * 128 + 127 for arrays in data.samples]
    assert values == pytest.approx([2, 1, 0], abs=1)  # a/10.jpg, a/9.png, b/2.png


def test_more_than_the_limit_is_thinned_evenly(tmp_path):
    np.savez(
        tmp_path / "x.npz", x=np.arange(2000, dtype=np.float32)[:, None, None, None] * np.ones((3, 8, 8), np.float32)
    )
    data = _decode(tmp_path)
    firsts = [float(arrays[0][0, 0, 0, 0]) for arrays in data.samples]
    assert len(firsts) == MAX_SAMPLES
    steps = np.diff(firsts)
    assert (firsts[0], steps.min() >= 3, steps.max() <= 4) == (0.0, True, True)


def test_class_ids_come_from_folders_named_by_number_or_by_label(tmp_path):
    _pictures(tmp_path / "numbers", ["3/a.png", "12/b.png"])
    assert open_samples(tmp_path / "numbers").labels.tolist() == [12, 3]
    _pictures(tmp_path / "names", ["dog/a.png", "cat/b.png"])
    assert open_samples(tmp_path / "names").labels is None
    assert open_samples(tmp_path / "names", labels=["cat", "dog"]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((4, 3, 8, 9), np.float32)}, r"\(3, 8, 9\)"),
        ({"a": np.zeros((4, 3, 8, 8), np.float32), "b": np.zeros((4, 1), np.float32)}, r"found \['a', 'b'\]"),
        ({"x": np.full((4, 3, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "same number"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32), "labels": np.zeros(3, int)}, "same number"),
        ({"x": np.array([{}, {}], object)}, "plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, said):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CalibrationError, match=said):
        _decode(tmp_path / "x.npz")


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MAX_ARRAY_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((100, 3, 8, 8), np.float32))
    with pytest.raises(CalibrationError, match="Wanted at most 65536 B"):
        open_calibration(tmp_path / "x.npz")


def test_pictures_without_preprocessing_say_how_to_give_it(tmp_path):
    _pictures(tmp_path, ["a.png"])
    with pytest.raises(CalibrationError, match="--mean and --std"):
        _decode(tmp_path)


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="found 0"):
        open_calibration(tmp_path)


def _packed(folder, *files):
    """What `headtail split --data` takes: the files back to back."""
    blobs = [(folder / name).read_bytes() for name in files]
    offset = np.cumsum([0, *map(len, blobs)])
    return {"data": np.frombuffer(b"".join(blobs), np.uint8), "offset": offset}


def test_encoded_pictures_in_an_archive_are_those_of_a_folder(tmp_path):
    _pictures(tmp_path / "folder", ["a.png", "b.png", "c.png"])
    arrays = _packed(tmp_path / "folder", "a.png", "b.png", "c.png")
    names = np.array(["one", "two"])  # what else is in such a file
    np.savez(tmp_path / "x.npz", **arrays, labels=np.array([2, 0, 1]), coarse_label=np.array([1, 0, 0]), names=names)
    found = open_samples(tmp_path / "x.npz")
    assert (len(found), found.labels.tolist(), found.arrays) == (3, [2, 0, 1], None)
    folder = open_samples(tmp_path / "folder")
    for a, b in zip(*(one.inputs([SPEC], PICTURES, range(3)) for one in (found, folder)), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
    np.savez(tmp_path / "z.npz", **arrays, coarse_label=np.array([1, 0, 0]))
    assert open_samples(tmp_path / "z.npz").labels.tolist() == [1, 0, 0]  # as for training
    np.savez(tmp_path / "y.npz", **arrays, labels=np.array([2, 0]))
    with pytest.raises(samples.DataError, match=r"same number of samples.*\[2, 3\]"):
        open_samples(tmp_path / "y.npz")


@pytest.mark.parametrize("key", ["label", "labels", "coarse_label"])
def test_pictures_with_class_ids_as_for_training_are_taken(tmp_path, key):
    images = np.stack([np.full((10, 12, 3), value, np.uint8) for value in (7, 80, 200)])
    np.savez(tmp_path / "x.npz", images=images, **{key: np.array([2, 0, 1])})
    assert open_samples(tmp_path / "x.npz").labels.tolist() == [2, 0, 1]
    data = _decode(tmp_path / "x.npz", preprocessing=PICTURES)
    assert [float(one[0][0, 0, 0, 0]) * 128 + 127 for one in data.samples] == pytest.approx([7, 80, 200])


def test_a_training_set_with_names_and_other_class_ids_is_taken_and_one_of_them_may_be_named(tmp_path):
    images = np.stack([np.full((10, 12, 3), value, np.uint8) for value in (7, 80, 200)])
    ids = {"labels": np.array([2, 0, 1]), "coarse_label": np.array([1, 0, 0]), "name": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "x.npz", images=images, **ids)
    _pictures(tmp_path / "folder", ["a.png", "b.png", "c.png"])
    np.savez(tmp_path / "y.npz", **_packed(tmp_path / "folder", "a.png", "b.png", "c.png"), **ids)
    for name in ("x.npz", "y.npz"):
        assert len(_decode(tmp_path / name, preprocessing=PICTURES).samples) == 3
        assert open_samples(tmp_path / name).labels.tolist() == [2, 0, 1]
        assert open_samples(tmp_path / name, label_key="coarse_label").labels.tolist() == [1, 0, 0]
        with pytest.raises(samples.DataError, match=r"class ids as fine in .*\['coarse_label'.*--label-key"):
            open_samples(tmp_path / name, label_key="fine")


def test_a_picture_that_cannot_be_used_is_named(tmp_path):
    _pictures(tmp_path / "p", ["a/1.jpg", "a/2.jpg", "a/3.jpg"])
    whole = (tmp_path / "p" / "a" / "2.jpg").read_bytes()
    (tmp_path / "p" / "a" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CalibrationError, match=r"a/2\.jpg"):
        _decode(tmp_path / "p", preprocessing=PICTURES)
    np.savez(tmp_path / "x.npz", **_packed(tmp_path / "p", "a/1.jpg", "a/2.jpg"))
    with pytest.raises(CalibrationError, match=r"number 1 of .*x\.npz"):
        _decode(tmp_path / "x.npz", preprocessing=PICTURES)
    np.savez(tmp_path / "small.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1])
    with pytest.raises(CalibrationError, match=r"number 0 of .*small\.npz"):
        _decode(tmp_path / "small.npz", preprocessing=PICTURES)


@pytest.mark.parametrize("offset", [[0, 5, 3], [0, 10**6], [-1, 4], [0], [0.0, 4.0], [[0, 4]], [], ["a", "b"]], ids=str)
def test_offsets_that_lead_out_of_the_data_are_refused(tmp_path, offset):
    np.savez(tmp_path / "x.npz", data=np.zeros(100, np.uint8), offset=np.array(offset))
    with pytest.raises(samples.DataError, match=r"rising whole numbers in `offset`.*x\.npz"):
        open_samples(tmp_path / "x.npz")


@pytest.mark.parametrize("labels", [np.array(["cat", "dog"]), np.eye(2), np.array([[0], [1]])], ids=str)
def test_class_ids_are_whole_numbers_one_a_sample(tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 8, 8), np.float32), labels=labels)
    with pytest.raises(samples.DataError, match="one a sample"):
        open_samples(tmp_path / "x.npz")


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal((64, 64)))
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(samples.DataError, match=r"x\.npz"):
        open_samples(path)
