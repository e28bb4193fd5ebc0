import io
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from PIL import Image

from edge_runtime.preprocess import prepare
from edge_runtime.wire import FIXED_BYTES
from export import evaluate
from export.codec_points import FRAME_BYTES, code_picture, table_bytes
from export.evaluate import EvaluationError, Times, Way, evaluate_pair, pictures_of, summarise
from export.evaluation import Evaluation
from export.head_cost import head_cost
from export.pair_runner import PairRunner
from export.variant_export import dump_variants, to_variants
from split.intervals import bootstrap_mean, paired_difference
from split.plan_variant_file import parse_variants


def test_a_pair_costs_the_bytes_of_its_frames(pairs, picture_set):
    pair, data = pairs["entropic"], picture_set(12, seed=21)
    way = evaluate_pair(pair.head, pair.tail, data, name="entropic")
    runner = PairRunner(pair.head, pair.tail)
    frames = [runner.frame(runner.latents(runner.input_of(one))) for one in pictures_of(data)]
    assert way.sizes.tolist() == [len(frame) for frame in frames]
    assert np.array_equal(way.logits, np.stack([runner.logits(frame)[0] for frame in frames]))
    (row,) = summarise([way], data.labels, reference="entropic")
    assert row.bytes_mean == pytest.approx(np.mean(way.sizes))
    assert row.accuracy_interval[0] <= row.accuracy <= row.accuracy_interval[1]
    assert row.loss == 0


def test_pairs_and_their_early_exits_become_candidates_of_a_plan(pairs, picture_set):
    pair, data = pairs["entropic"], picture_set(8, seed=23)
    sent = evaluate_pair(pair.head, pair.tail, data, name="entropic")
    times = Times(sent.times.device, *(0.5 * ms for ms in (sent.times.encode, sent.times.decode, sent.times.host)))
    leaving = replace(sent, name="entropic, early exit", kind="exit", sizes=np.where(np.arange(8) % 2, 0, sent.sizes),
                      times=times, sent=0.5)  # fmt: skip
    rows = summarise([sent, leaving], data.labels, reference="entropic")
    found = Evaluation(
        data="d", data_sha256="", pictures=8, skipped=0, machine="m", ways=rows, differences=(), links=()
    )
    every, some = parse_variants(dump_variants(to_variants(found, {"entropic": pair.head}))).bottlenecks
    assert (every.exit_share, some.exit_share, some.artefact) == (0, 0.5, pair.head.key)
    assert some.tail_ms == pytest.approx(every.tail_ms)
    assert 0 <= every.payload_bytes + FIXED_BYTES + 12 - rows[0].bytes_mean < 1
    assert some.accuracy == rows[1].accuracy


def test_the_trained_pairs_still_know_their_colours(pairs, picture_set):
    data = picture_set(48, seed=22)
    for name, pair in pairs.items():
        way = evaluate_pair(pair.head, pair.tail, data, name=name)
        assert (way.logits.argmax(1) == data.labels.numpy()).mean() > 0.6, name


def test_losses_are_paired_with_the_reference():
    labels = np.array([0, 1, 0, 1])
    right = np.eye(2, dtype=np.float32)[labels]
    wrong = right.copy()
    wrong[0] = wrong[0, ::-1]
    sizes = np.array([1, 2, 3, 4])
    ways = [Way("a", "whole", "a", 0, right, sizes, Times()), Way("b", "pair", "b", 0, wrong, sizes, Times())]
    reports = summarise(ways, labels, reference="a")
    assert [one.loss for one in reports] == [0, 0.25]
    assert reports[1].bytes_p50 == 2.5
    assert reports[1].loss_interval[0] >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": [0, 5]}, "class ids"), ({"labels": [0]}, "answers"), ({"reference": "other"}, "different names")],
)
def test_ways_that_do_not_belong_together_are_refused(change, message):
    way = Way("a", "whole", "a", 0, np.zeros((2, 3), np.float32), np.zeros(2, int), Times())
    with pytest.raises(EvaluationError, match=message):
        summarise([way], change.get("labels", [0, 1]), reference=change.get("reference", "a"))


def test_jpeg_is_counted_without_its_tables_and_decodes_to_the_same_form():
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=75)
    assert table_bytes(stream.getvalue()) == 2 * 69 + 2 * (33 + 183)  # the standard's own tables
    for codec in ("jpeg", "webp"):
        small, large = (code_picture(picture, codec, quality) for quality in (5, 90))
        assert small.size < large.size
        assert large.pixels().shape == picture.shape
    assert FRAME_BYTES == 32


def test_a_heads_cost_is_read_from_its_own_files(pairs):
    cost = head_cost(pairs["bottlefit"].head)
    # 7x7 conv 3 -> 64, a scale for each of its channels, 2x2 conv 64 -> 3; and biases, where they are not all zero
    weights, biases = 64 * 3 * 49 + 64 + 3 * 64 * 4, 64 + 64 + 3
    assert weights < cost.parameters <= weights + biases
    assert cost.macs == 16 * 16 * 64 * 3 * 49 + 8 * 8 * 64 + _last(pairs["bottlefit"]) * 64 * 4
    assert cost.flash_bytes > pairs["bottlefit"].head.entry.stat().st_size
    assert 64 * 16 * 16 <= cost.peak_activation_bytes <= 64 * 16 * 16 + 64 * 8 * 8 + 4 * 3 * 32 * 32


def _last(pair):
    _, channels, height, width = pair.head.manifest.outputs[0].shape
    return channels * height * width


def test_intervals_contain_the_mean_and_narrow_with_pairing():
    values = np.random.default_rng(1).integers(0, 2, 400)
    found = bootstrap_mean(values)
    assert found.low < values.mean() < found.high
    assert bootstrap_mean(values) == found
    same = paired_difference(values, values)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_python_api_trains_and_evaluates(colour, picture_set, tmp_path):
    import headtail

    options = headtail.BottleneckOptions(
        method="bottlefit",
        layer="layer3",
        data="colour_network:pictures",
        out=tmp_path,
        settings={"epochs": "1,1", "batch": "12", "channels": "3"},
        codec_qualities=False,
    )
    made = headtail.train_bottleneck("colour_network:network", options)
    pairs = {"bottlefit": (made.pair.head, made.pair.tail)}
    found = headtail.evaluate(pairs, made.whole, picture_set(12), headtail.EvaluationOptions(data="d", codecs=False))
    assert [one.kind for one in found.ways] == ["whole", "raw", "pair"]
    assert {one.link for one in found.links} == set(headtail.EvaluationOptions(data="d").links)


def test_a_codec_that_loses_nothing_gives_the_network_the_same_input(pairs, picture_set, monkeypatch):
    pair, data = pairs["entropic"], picture_set(4)
    replace = msgspec.structs.replace
    preprocessing = pair.head.manifest.preprocessing
    larger = replace(preprocessing, resize_short=preprocessing.crop[0] * 5 // 4)  # what is cut off would show
    manifest = replace(pair.head.manifest, preprocessing=larger, outputs=pair.tail.manifest.outputs)
    seen = []

    class Recorder:
        def run(self, arrays):
            seen.append(arrays[0])
            return [np.zeros(manifest.outputs[0].shape, manifest.outputs[0].dtype)]

        def close(self):
            pass

    whole = SimpleNamespace(manifest=manifest, folder="whole")
    monkeypatch.setattr(evaluate, "open_session", lambda *_, **__: Recorder())
    monkeypatch.setattr(evaluate, "code_picture", lambda image, *_: SimpleNamespace(size=1, pixels=lambda: image))
    evaluate.evaluate_whole(whole, data)
    evaluate.evaluate_whole(whole, data, codec="jpeg", quality=50)
    wanted = [prepare(one, manifest.inputs[0], larger) for one in pictures_of(data)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, wanted + wanted, strict=True))
