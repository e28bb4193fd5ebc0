"""The bench of learned bottlenecks: rows that are measurements, a fuzzer that finds what is planted."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rows import parse_measurement
from benchmarks.split import codec, fuzz, study_curves
from benchmarks.split.bottlefit_rows import Form, bottlefit_rows, bytes_at, read_forms
from benchmarks.split.curves_b import Variant, codec_rows, head_work
from benchmarks.split.grocery_codecs import CodecPoint
from benchmarks.split.study_chart import chart_a
from benchmarks.split.study_job import write_points
from benchmarks.split.study_nets import SmallNetwork, head_macs, macs
from benchmarks.split.study_plan import COUNTED_TABLES, JOBS, PROTOCOLS, RATES, plan
from benchmarks.split.study_rows import earlier, prefix_rows
from edge_runtime.entropy import count_tables
from split.methods import find_method
from split.slim import slim_encoder


def test_sizes_of_the_smaller_case_are_measurements_and_hold():
    latents = codec.case(28)
    found = codec.coders(latents, count_tables([latents]))
    rows = [parse_measurement("codec", row) for row in codec.size_rows(28, found, codec.entropy_bytes(latents))]
    ours = next(row for row in rows if row.id == "codec_over.18816")
    assert 0 < ours.value <= ours.bar


def test_seeds_of_the_fuzzer_are_inputs_within_its_limit(tmp_path):
    fuzz.write_seeds(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 32
    assert max(sizes) <= fuzz.MAX_BYTES


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang comes with `make setup-dev`")
def test_a_planted_bug_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SOURCES", tmp_path)
    for name in ("ht_entropy.c", "ht_entropy.h", "ht_entropy_wide.h"):
        source = (fuzz.ROOT / "edge_runtime" / "csrc" / name).read_text()
        (tmp_path / name).write_text(source.replace("if (coder->end - coder->at < 2) {", "if (0) {"))
    try:
        done = fuzz.fuzz(20)
    except fuzz.RowError as error:
        pytest.skip(f"no libFuzzer: {str(error)[:200]}")
    assert done.findings


def curve(rng, factor, right):
    sizes = [np.round(rng.uniform(90, 110, 400) * factor * scale) for scale in (1, 2, 4, 8)]
    return [study_curves.Point("", one, good) for one, good in zip(sizes, right, strict=True)]


def test_the_interval_of_equal_curves_holds_zero_and_that_of_half_the_bytes_does_not():
    rng = np.random.default_rng(0)
    right = [rng.random(400) < share for share in (0.5, 0.6, 0.7, 0.8)]
    reference, half = ({seed: curve(rng, factor, right) for seed in range(3)} for factor in (1.0, 0.5))
    equal = study_curves.compare(reference, {seed: curve(rng, 1.0, right) for seed in range(3)})
    assert equal.low < 0 < equal.high
    less = study_curves.compare(reference, half)
    assert less.high < -45
    assert less.value == pytest.approx(-50, abs=2)


def test_curves_that_do_not_overlap_are_not_compared():
    rng = np.random.default_rng(0)
    low, high = ([rng.random(400) < share for share in shares] for shares in ((0.2, 0.3), (0.7, 0.8)))
    points = [[study_curves.Point("", rng.uniform(90, 110, 400), one) for one in side] for side in (low, high)]
    assert study_curves.compare({0: points[0]}, {0: points[1]}).value is None


def test_overlap_is_asked_of_the_seeds_in_the_mean():
    rng = np.random.default_rng(0)
    rights = {
        name: [np.arange(400) < 400 * share for share in shares]
        for name, shares in (("wide", (0.5, 0.6, 0.7, 0.8)), ("narrow", (0.5, 0.53, 0.56, 0.6)))
    }
    reference = {seed: curve(rng, 1.0, rights["wide"]) for seed in range(3)}
    tested = {seed: curve(rng, 0.5, rights["narrow" if seed == 2 else "wide"]) for seed in range(3)}
    assert study_curves.compare(reference, tested).value is not None
    narrow = {seed: curve(rng, 0.5, rights["narrow"]) for seed in range(3)}
    assert study_curves.compare(reference, narrow).value is None


def test_neighbouring_rates_that_overlap_are_chosen_on_pictures_that_measure_nothing():
    rng = np.random.default_rng(0)
    low, wide = ([rng.random(4000) < share for share in shares] for shares in ((0.3, 0.5), (0.1, 0.31, 0.49, 0.9)))
    reference, tested = (
        {0: [study_curves.Point(str(n), rng.uniform(90, 110, 4000) * 2**n, one) for n, one in enumerate(side)]}
        for side in (low, wide)
    )
    _, chosen, kept = study_curves.comparable(reference, tested)
    assert [one.setting for one in chosen[0]] == ["1", "2"]
    assert kept == "2 of 2 rates of the reference and 2 of 4 of ours"
    for one in tested[0]:
        one.right[np.arange(4000) % study_curves.CHOOSING != 0] = False
    assert [one.setting for one in study_curves.comparable(reference, tested)[1][0]] == ["1", "2"]


def test_a_reference_gives_up_the_rates_that_nothing_compares_with():
    rng = np.random.default_rng(0)
    wide, high = ([rng.random(4000) < share for share in shares] for shares in ((0.1, 0.6, 0.7, 0.8), (0.6, 0.7, 0.81)))
    reference, tested = (
        {0: [study_curves.Point(str(n), rng.uniform(90, 110, 4000) * 2**n, one) for n, one in enumerate(side)]}
        for side in (wide, high)
    )
    kept, chosen, _ = study_curves.comparable(reference, tested)
    assert [one.setting for one in kept[0]] == ["1", "2", "3"]
    assert len(chosen[0]) == 3


def test_a_progressive_stream_with_a_tenth_more_bytes_has_that_excess():
    rng = np.random.default_rng(0)
    right = [rng.random(400) < share for share in (0.5, 0.6, 0.7, 0.8)]
    single = {0: curve(rng, 1.0, right)}
    more = {0: [study_curves.Point("", one.sizes * 1.1, one.right) for one in single[0]]}
    worst = study_curves.progressive_excess(more, single)
    assert worst.value == pytest.approx(10, abs=1e-6)
    assert worst.low <= 10 <= worst.high
    assert study_curves.progressive_excess({}, single).value is None
    below = {0: [study_curves.Point("", single[0][0].sizes * 1.5, rng.random(400) < 0.3)]}
    assert study_curves.progressive_excess(below, single).value == pytest.approx(50)  # at least


def test_a_progressive_stream_that_is_a_point_less_right_at_equal_bytes_has_that_loss():
    places = np.arange(1000)
    single = {0: [study_curves.Point(str(n), np.full(1000, 100.0 * 2**n), places < 500 + 100 * n) for n in range(4)]}
    stream = {0: [study_curves.Point(str(n), np.full(1000, 100.0 * 2**n), places < 490 + 102 * n) for n in range(4)]}
    worst = study_curves.progressive_loss(stream, single)
    assert worst.value == pytest.approx(1.0)
    assert worst.low <= 1 <= worst.high
    assert study_curves.progressive_loss(single, single).value == 0
    between = {0: [study_curves.Point("", np.full(1000, 150.0), places < 500)]}
    assert 4 < study_curves.progressive_loss(between, single).value < 7  # half an octave above 100 B
    more = {0: [study_curves.Point("", np.full(1000, 9000.0), places < 700)]}
    assert study_curves.progressive_loss(more, single).value == pytest.approx(
        10
    )  # the best single rate, with fewer bytes
    assert study_curves.progressive_loss({}, single).value is None
    less = {0: [study_curves.Point("", np.full(1000, 50.0), places < 400)]}
    assert "Wanted bytes that models of one rate reach" in study_curves.progressive_loss(less, single).reason


def test_the_recipe_of_a_stream_is_chosen_on_validation_pictures():
    rng = np.random.default_rng(0)
    right = [np.arange(400) % 100 < share for share in (50, 60, 70, 80)]
    single = [replace(one, validation=(one.sizes.mean(), one.right.mean())) for one in curve(rng, 1.0, right)]

    def stream(validation, test):
        return [
            study_curves.Point(f"layers={n}", one.sizes * test, one.right, (one.validation[0] * validation, one.validation[1]))
            for n, one in enumerate(single)
        ]  # fmt: skip

    curves = {(protocol, name): {} for protocol, some in RATES.items() for name in some}
    curves["a", "slim"] = dict.fromkeys(range(3), single)
    curves["a", "progressive_steep"] = dict.fromkeys(range(3), stream(1.5, 0.5))
    curves["a", "progressive_slow"] = dict.fromkeys(range(3), stream(0.8, 0.9))
    rows = {row["id"]: row for row in prefix_rows(curves)}
    assert rows["progressive"]["value"] == rows["progressive.slow"]["value"] == pytest.approx(-10, abs=1)
    assert rows["progressive.steep"]["value"] < -45
    assert "price_step 2.0" in rows["progressive"]["what"]
    assert rows["progressive.seeds"]["value"] == 3


def test_the_chart_of_protocol_a_draws_the_curves_that_have_points(tmp_path):
    rng = np.random.default_rng(0)
    right = [np.arange(400) % 100 < share for share in (50, 60, 70, 80)]
    curves = {("a", name): {} for name in RATES["a"]}
    curves["a", "slim"] = dict.fromkeys(range(3), curve(rng, 1.0, right))
    chart_a(curves, 0.9, tmp_path / "charts" / "curves_a")
    text = (tmp_path / "charts" / "curves_a.svg").read_text()
    assert "<!-- slim -->" in text
    assert "<!-- no split -->" in text
    assert "hyperprior" not in text
    assert (tmp_path / "charts" / "curves_a.png").is_file()


def test_integers_of_the_peer_in_our_tables_are_points_of_their_own(tmp_path):
    sizes, right = np.full(8, 90), np.ones(8, bool)
    own, counted = ("", sizes, right), (COUNTED_TABLES, sizes - 5, right)
    write_points(tmp_path / "a-peer_fp-beta0.08-s0.npz", {"test": [own, counted], "val": [own, counted]}, {})
    ((one,),) = study_curves.complete(study_curves.read_rates(tmp_path, "a", "peer_fp")).values()
    ((other,),) = study_curves.complete(study_curves.read_rates(tmp_path, "a", "peer_fp", counted=True)).values()
    assert (one.setting, one.sizes.mean(), other.setting, other.sizes.mean()) == ("", 90, COUNTED_TABLES, 85)


def test_rows_behind_the_earlier_teacher_have_ids_of_their_own_and_no_bar():
    (row,) = earlier([{"id": "bottlefit", "what": "bytes", "value": 1.0, "unit": "%", "direction": "<=", "bar": 23}])
    assert row == {
        "id": "earlier.bottlefit", "what": "behind the earlier teacher: bytes", "value": 1.0, "unit": "%", "direction": "info",
    }  # fmt: skip


def test_every_job_of_the_study_has_a_name_of_its_own_and_options_that_its_method_knows():
    assert len(JOBS) == len(plan())
    for job in JOBS.values():
        if job.method in ("codec", "raw", "small"):
            continue
        method = find_method("entropic" if job.method.startswith("peer_") else job.method)
        method.stages(method.options(**job.options))


def test_a_job_with_two_kinds_of_points_is_done_when_both_are_there(tmp_path):
    job = next(one for one in JOBS.values() if one.tunes)
    (tmp_path / "points").mkdir()
    for name in (job.name, job.tuned_name):
        assert not job.done(tmp_path)
        (tmp_path / "points" / f"{name}.npz").touch()
    assert job.done(tmp_path)


def test_the_small_network_does_the_work_of_the_head_that_it_stands_beside():
    protocol = PROTOCOLS["b"]
    job = next(one for one in JOBS.values() if (one.protocol, one.method, one.label) == ("b", "slim", ""))
    form = find_method("slim").options(**job.options)
    head = slim_encoder(8, form)
    assert macs(head, protocol.size) == head_macs()
    assert macs(SmallNetwork(protocol.classes), protocol.size) == pytest.approx(head_macs(), rel=0.01)


def _codec(name, quality, size, plain, tuned):
    rights = (np.arange(100) < count for count in (plain, tuned))
    return CodecPoint(name, quality, np.full(100, float(size)), *rights)


def test_bytes_at_an_accuracy_are_those_of_the_cheaper_codec_that_reaches_it():
    codecs = [
        _codec("webp", 1, 1000, 50, 60), _codec("webp", 10, 2000, 70, 80),
        _codec("jpeg", 5, 500, 40, 45), _codec("jpeg", 12, 1200, 60, 70),
    ]  # fmt: skip
    assert bytes_at(0.6, codecs, tuned=False) == pytest.approx(1200)
    assert bytes_at(0.7, codecs, tuned=False) == pytest.approx(2000)
    assert bytes_at(0.7, codecs, tuned=True) == pytest.approx(1200)
    assert bytes_at(0.9, codecs, tuned=True) == pytest.approx(1200)  # of the best points, as neither reaches it
    assert bytes_at(0.3, codecs, tuned=True) is None


def _form(name, size, right, validation, seeds=3):
    point = study_curves.Point("", np.full(100, float(size)), np.arange(100) < right, validation)
    return Form(name, name, [point] * seeds)


def test_bottlefit_is_chosen_on_validation_pictures_and_its_loss_is_paired():
    codecs = [_codec("webp", 1, 1000, 50, 50), _codec("webp", 10, 4000, 90, 90)]
    found = [
        _form("wide", 600, 91, (600, 0.904)),
        _form("middle", 500, 90, (500, 0.9), seeds=2),
        _form("narrow", 100, 92, (100, 0.2)),
    ]
    rows = {row["id"]: row for row in bottlefit_rows(found, codecs, np.arange(100) < 92)}
    assert rows["bottlefit.middle"]["value"] == pytest.approx(12.5)
    assert "middle, 500 B at 90.0 %" in rows["bottlefit"]["what"]
    assert rows["bottlefit"]["value"] == pytest.approx(12.5)
    assert rows["bottlefit.upper"]["value"] >= 12.5
    assert rows["bottlefit.loss"]["value"] == pytest.approx(2.0)
    assert 2.0 <= rows["bottlefit.loss_upper"]["value"] <= 6.0
    assert rows["bottlefit.seeds"]["value"] == 2
    assert {row["id"]: row["value"] for row in bottlefit_rows([], codecs, np.ones(100))}["bottlefit"] is None


def test_forms_of_bottlefit_say_channels_bits_kept_layers_and_tail():
    slugs = {form.slug for form in read_forms(study_curves.EARLIER)}
    assert {"4c8b", "16c5b.half.front", "16c5b.half.front.tuned"} <= slugs


def test_a_curve_is_its_largest_complete_part():
    def rates(*seeds):
        return {f"rate {n}": {seed: [f"{n} {seed}"] for seed in some} for n, some in enumerate(seeds)}

    assert study_curves.complete(rates((0, 1, 2), (0, 1), (0, 1), (0, 1), (0,))) == {
        seed: [f"{n} {seed}" for n in range(4)] for seed in (0, 1)
    }
    assert len(study_curves.complete(rates((0, 1, 2), (0, 1, 2), (0,)))[0]) == 3
    assert list(study_curves.complete(rates((0, 1, 2), ()))) == [0, 1, 2]
    assert study_curves.complete(rates((), ())) == study_curves.complete({}) == {}


def test_what_is_compared_with_codecs_is_chosen_on_validation_pictures_among_curves_with_three_seeds():
    def curves(factor, seeds=3):
        nothing = np.zeros(1)
        points = [study_curves.Point("", nothing, nothing, (factor * 2**n, n / 10)) for n in range(1, 5)]
        return {seed: points for seed in range(seeds)}

    found = {"first": curves(1.0), "best": curves(0.8), "one seed": curves(0.1, seeds=1)}
    assert study_curves.best_on_validation(found) == "best"
    beyond = [study_curves.Point("", np.zeros(1), np.zeros(1), (n, 0.9 + n / 100)) for n in (1, 2)]
    assert study_curves.best_on_validation(found | {"apart": dict.fromkeys(range(3), beyond)}) == "best"
    assert study_curves.best_on_validation({"one seed": curves(0.1, seeds=1)}) == "one seed"


def test_the_work_of_a_head_counts_the_layers_that_it_keeps():
    whole = macs(PROTOCOLS["b"].network(), 160)
    slim, front, deep = (head_work(curve) for curve in ("slim", "front", "deep"))
    assert slim == head_macs() < front < deep < whole


def test_the_far_end_against_the_harder_codec_is_what_counts():
    rng = np.random.default_rng(0)
    right = [np.arange(400) % 100 < share for share in (50, 60, 70, 80)]
    slim = {seed: curve(rng, 1.0, right) for seed in range(3)}
    codecs = [
        CodecPoint(name, q, one.sizes * factor, one.right, one.right)
        for name, factor in (("webp", 2.0), ("jpeg", 4.0))
        for q, one in enumerate(curve(rng, 1.0, right))
    ]
    variant = Variant("slim", tuned=False)
    rows = {row["id"]: row for row in codec_rows({variant: slim}, codecs)}
    assert rows["ours_codec_bd"]["value"] == pytest.approx(-50, abs=2)
    assert rows["ours_codec_bd.slim"]["value"] <= rows["ours_codec_bd"]["value"]
    assert "M multiply-accumulates in the head" in rows["ours_codec_bd.slim"]["what"]
    assert next(codec_rows({variant: {0: slim[0]}}, codecs))["value"] is None

    high = [np.arange(400) % 100 < share for share in (77, 79, 82, 85)]  # too few of the codecs' accuracies
    better = Variant("deep", tuned=False)
    found = {variant: slim, better: {seed: curve(rng, 0.5, high) for seed in range(3)}}
    rows = {row["id"]: row for row in codec_rows(found, codecs)}
    assert rows["ours_codec_bd"]["value"] == pytest.approx(-50, abs=2)
    assert rows["ours_codec_bd.deep.shared"]["value"] < rows["ours_codec_bd.slim"]["value"]
