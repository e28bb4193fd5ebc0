"""Pictures are measured as a device sees them: each artefact resizes and crops the original by itself."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge_runtime.manifest import Preprocessing
from edge_runtime.preprocess import centre_crop, decode_image, prepare
from export import originals
from export.commands import eval as command
from export.evaluate import evaluate_pair
from export.evaluation import EvaluationOptions, evaluate_pairs
from export.originals import OriginalsError, open_originals
from export.pair_runner import PairRunner
from orchestrator.cli import run
from split.training_data import DataOptions, PictureSet, TrainingDataError

ANY = DataOptions(1, classes=3)


@pytest.fixture
def folder(colour, tmp_path):
    """Pictures of several sizes and forms, by class name; their middle is not like the whole of them."""
    rng = np.random.default_rng(6)
    for number in range(9):
        height, width = 40 + 8 * (number % 3), 72 - 8 * (number % 4)
        image = rng.integers(0, 120, (height, width, 3), np.uint8)
        image[..., number % 3] += 60
        image[height // 4 : -height // 4, width // 4 : -width // 4] = 255 - number
        path = tmp_path / "pictures" / colour.LABELS[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


def prepared_by(pair, name="other", **changes):
    """The pair as if its head prepared pictures in another way."""
    preprocessing = msgspec.structs.replace(pair.head.manifest.preprocessing, **changes)
    manifest = msgspec.structs.replace(pair.head.manifest, preprocessing=preprocessing)
    return replace(pair.head, manifest=manifest), pair.tail


def as_on_a_device(head, tail, files):
    """Logits of each picture, as `edge_runtime.pipeline` prepares it."""
    runner = PairRunner(head, tail)
    inputs = [prepare(decode_image(one), head.manifest.inputs[0], head.manifest.preprocessing) for one in files]
    logits = [runner.logits(runner.frame(runner.latents(one)))[0] for one in inputs]
    runner.close()
    return np.stack(logits)


@pytest.mark.parametrize("changes", [{"resize_short": None}, {"resize_short": 36, "interpolation": "bicubic"}, {}])
def test_a_measured_pair_answers_as_on_a_device(pairs, colour, folder, changes):
    head, tail = prepared_by(pairs["entropic"], **changes)
    files = [path.read_bytes() for path in sorted(folder.rglob("*.png"), key=lambda one: (one.parent.name, one.name))]
    data = open_originals(folder, ANY, colour.LABELS)
    way = evaluate_pair(head, tail, data, name="p")
    np.testing.assert_array_equal(way.logits, as_on_a_device(head, tail, files))


def test_the_order_of_pairs_changes_nothing(pairs, colour, folder):
    several = {"cuts": prepared_by(pairs["entropic"], resize_short=None), "resizes": prepared_by(pairs["bottlefit"])}
    options = EvaluationOptions(data="d", codecs=False)
    found = [
        evaluate_pairs(dict(order), None, open_originals(folder, ANY, colour.LABELS), options)
        for order in (several.items(), reversed(several.items()))
    ]
    rows = [{way.name: (way.accuracy, way.ece, way.bytes_mean) for way in one.ways} for one in found]
    assert rows[0] == rows[1]
    assert found[0].data_sha256 == found[1].data_sha256


def test_crops_that_are_no_squares_are_cut_from_the_original(folder):
    wide = Preprocessing(resize_short=48, crop=(32, 48), mean=(0.0,) * 3, std=(1.0,) * 3)
    data = open_originals(folder, ANY)
    wanted = [centre_crop(one(), wide) for one in data.decode]
    assert all(np.array_equal(a, b) for a, b in zip(data.crops(wide), wanted, strict=True))


def test_the_originals_are_decoded_once_for_all_ways_of_one_artefact(folder, monkeypatch):
    data = open_originals(folder, ANY)
    decoded = []
    data.decode = [lambda one=one: decoded.append(1) or one() for one in data.decode]
    crop = Preprocessing(crop=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    for mean in (0.0, 5.0):  # mean and std come after the crop
        list(data.crops(msgspec.structs.replace(crop, mean=(mean,) * 3)))
    assert len(decoded) == len(data)
    monkeypatch.setattr(originals, "_KEPT_BYTES", 0)
    for _ in range(2):
        list(data.crops(msgspec.structs.replace(crop, crop=(24, 24))))
    assert len(decoded) == 3 * len(data)


def test_pictures_of_the_networks_own_size_are_measured_as_before(pairs, colour):
    data = open_originals("colour_network:pictures", ANY, colour.LABELS)
    images, labels = colour.colours()
    before = PictureSet.of_arrays(images, labels, classes=colour.LABELS)
    options = EvaluationOptions(data="d", codecs=False)
    pair = {"p": (pairs["entropic"].head, pairs["entropic"].tail)}
    now, then = (evaluate_pairs(pair, None, one, options) for one in (data, before))
    assert now.data_sha256 == then.data_sha256
    assert [(one.accuracy, one.ece, one.bytes_p95) for one in now.ways] == [
        (one.accuracy, one.ece, one.bytes_p95) for one in then.ways
    ]


def test_a_picture_that_is_too_small_is_named(folder):
    Image.new("RGB", (20, 90)).save(folder / "red" / "small.png")
    data = open_originals(folder, ANY)
    with pytest.raises(OriginalsError, match=r"found \(90, 20\).*red/small.png of .*--resize-short"):
        list(data.crops(Preprocessing(crop=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)))
    wide = Preprocessing(resize_short=30, crop=(30, 300), mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(OriginalsError, match=r"after the resize to 30\. Set a larger resize_short"):
        list(data.crops(wide))


def test_damaged_pictures_are_left_out_with_their_labels(folder, colour):
    (folder / "green" / "0.png").write_bytes(b"no picture")
    data = open_originals(folder, ANY, colour.LABELS)
    assert data.skipped == ("green/0.png",)
    assert len(data) == len(data.decode) == len(data.names) == 9
    assert [one.split("/")[0] for one in data.names] == [colour.LABELS[one] for one in data.labels]
    with pytest.raises(TrainingDataError, match=r"green/0.png"):
        open_originals(folder, replace(ANY, strict=True))


def test_the_command_measures_the_originals(pairs, folder, monkeypatch, capsys):
    head, tail = prepared_by(pairs["entropic"], resize_short=None)
    monkeypatch.setattr(command, "find_pairs", lambda *_: ({"p": (head, tail)}, None))
    seen = []
    monkeypatch.setattr(command, "evaluate_pairs", lambda _pairs, _whole, data, _options: seen.append(data))
    monkeypatch.setattr(command, "print_json", lambda _: None)
    assert run(["eval", "p", "--data", str(folder), "--json"]) == 0
    assert sorted({one().shape for one in seen[0].decode}) == sorted(
        {np.asarray(Image.open(one)).shape for one in folder.rglob("*.png")}
    )
