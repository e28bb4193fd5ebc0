import math
import random

import msgspec
import pytest

from device_profiles import DeviceProfile, list_boards, load_board
from device_profiles.measurement import (
    EngineSettings,
    KernelTime,
    Percentiles,
    Profile,
    ProfileError,
    ProfileMismatchError,
)
from split.cold_start import cold_start
from split.predict import Work, calibrate, parse_calibration, predict, samples_from
from split.roofline import PredictError, Roofline, Sample, choose_overlap, fit_roofline

ENGINE = EngineSettings(name="onnxruntime", version="1.32.0")
TRUE = {
    "conv": Roofline(macs_per_ms=53.6e6, bytes_per_ms=6.5e6, overhead_ms=0.002),
    "depthwise": Roofline(macs_per_ms=33.5e6, bytes_per_ms=66.5e6, overhead_ms=0.005),
    "elementwise": Roofline(macs_per_ms=None, bytes_per_ms=20e6, overhead_ms=0.001),
}


def _work(rng, kind):
    size = int(10 ** rng.uniform(4, 6.5))
    return 0 if kind == "elementwise" else int(size * 10 ** rng.uniform(-1, 2.3)), size


def _samples(seed=0, *, networks=12, layers=12, noise=0.0):
    rng = random.Random(seed)
    found = []
    for network in range(networks):
        for layer in range(layers):
            kind = tuple(TRUE)[layer % 3]
            macs, size = _work(rng, kind)
            found.append(
                Sample(kind, macs, size, TRUE[kind].ms(macs, size) * math.exp(rng.gauss(0, noise)), f"n{network}")
            )
    return found


def test_the_fit_recovers_the_constants_without_noise():
    for kind, true in TRUE.items():
        fitted = fit_roofline([sample for sample in _samples(networks=24) if sample.kind == kind])
        assert fitted.bytes_per_ms == pytest.approx(true.bytes_per_ms, rel=0.05)
        if true.macs_per_ms is None:
            assert fitted.macs_per_ms is None
        else:
            assert fitted.macs_per_ms == pytest.approx(true.macs_per_ms, rel=0.05)


@pytest.mark.parametrize("overlapped", [True, False])
def test_the_form_of_a_class_is_found(overlapped):
    true = Roofline(macs_per_ms=53.6e6, bytes_per_ms=6.5e6, overhead_ms=0.002, overlapped=overlapped)
    samples = [
        Sample("conv", one.macs, one.bytes, true.ms(one.macs, one.bytes), one.group)
        for one in _samples(networks=24)
        if one.kind == "conv"
    ]
    assert choose_overlap(samples) == overlapped
    fitted = fit_roofline(samples, overlapped=overlapped)
    for one in samples:
        assert fitted.ms(one.macs, one.bytes) == pytest.approx(one.ms, rel=0.08)


def test_one_disturbed_kernel_does_not_move_the_fit():
    samples = [sample for sample in _samples(networks=24) if sample.kind == "conv"]
    samples[0] = Sample("conv", samples[0].macs, samples[0].bytes, 1e4, "n0")
    assert fit_roofline(samples).macs_per_ms == pytest.approx(TRUE["conv"].macs_per_ms, rel=0.06)


def test_intervals_cover_networks_that_were_not_seen():
    calibration = calibrate(_samples(1, noise=0.12), board="b", precision="fp32", engine=ENGINE)
    held_out = _samples(99, networks=60, noise=0.12)
    inside, whole_inside = 0, 0
    for network in {sample.group for sample in held_out}:
        own = [sample for sample in held_out if sample.group == network]
        prediction = predict(calibration, [Work("k", s.kind, s.macs, s.bytes) for s in own], engine=ENGINE)
        inside += sum(k.low_ms <= s.ms <= k.high_ms for k, s in zip(prediction.kernels, own, strict=True))
        whole_inside += prediction.low_ms <= sum(s.ms for s in own) <= prediction.high_ms
        assert prediction.low_ms <= prediction.ms <= prediction.high_ms
    assert inside / len(held_out) >= 0.8
    assert whole_inside / 60 >= 0.7
    assert all(one.mape < 0.2 and one.samples == 48 for one in calibration.classes)


def test_time_outside_kernels_is_learnt_from_whole_networks():
    samples = _samples(2, networks=6)
    wholes = {group: 1.1 * sum(s.ms for s in samples if s.group == group) for group in {s.group for s in samples}}
    calibration = calibrate(samples, board="b", precision="fp32", engine=ENGINE, wholes=wholes)
    assert calibration.whole == pytest.approx(1.1, rel=0.03)
    assert parse_calibration(msgspec.json.encode(calibration)) == calibration


def test_an_unknown_class_is_predicted_by_its_bytes_and_says_so():
    calibration = calibrate(_samples(networks=5), board="b", precision="fp32", engine=ENGINE)
    (kernel,) = predict(calibration, [Work("k", "lstm", 10**9, 10**6)]).kernels
    assert not kernel.measured_class
    assert kernel.bound == "memory"


def test_other_settings_and_impossible_samples_are_refused():
    calibration = calibrate(_samples(networks=5), board="b", precision="fp32", engine=ENGINE)
    with pytest.raises(ProfileMismatchError):
        predict(calibration, [Work("k", "conv", 1, 1)], engine=EngineSettings(name="onnxruntime", version="1.23"))
    for bad in (math.nan, -1.0, 0.0, math.inf):
        with pytest.raises(PredictError):
            Sample("conv", 1, 1, bad, "n")
    for work in ([], [Work("k", "conv", -1, 1)]):
        with pytest.raises(PredictError):
            predict(calibration, work)
    with pytest.raises(PredictError, match="4 networks"):
        calibrate(_samples(networks=3), board="b", precision="fp32", engine=ENGINE)
    with pytest.raises(PredictError, match="class with"):
        calibrate([Sample(f"k{n}", 1, 1, 1.0, f"n{n}") for n in range(8)], board="b", precision="fp32", engine=ENGINE)
    with pytest.raises(PredictError):
        parse_calibration(b'{"colour": 1}')
    broken = msgspec.structs.replace(calibration, other=msgspec.structs.replace(
        calibration.other, roofline=Roofline(macs_per_ms=None, bytes_per_ms=-1.0, overhead_ms=0.0)))  # fmt: skip
    with pytest.raises(PredictError, match="positive"):
        parse_calibration(msgspec.json.encode(broken))


def _profile(model, **changes):
    time = Percentiles(p50=1.0, p90=1.0, p99=1.0, runs=9)
    kernel = KernelTime(name="k", nodes=("a",), kind="conv", macs=5, bytes=7, latency=time)
    values = {"board": "b", "model": model, "model_sha256": "0", "precision": "int8", "engine": ENGINE, "created": "",
              "whole": time, "kernels": (kernel,)}  # fmt: skip
    return Profile(**(values | changes))


def test_samples_come_from_profiles_of_one_setting():
    samples, wholes = samples_from([_profile("m1"), _profile("m2")])
    assert [sample.group for sample in samples] == ["m1", "m2"]
    assert wholes == {"m1": 1.0, "m2": 1.0}
    for bad in (_profile("m2", engine=msgspec.structs.replace(ENGINE, threads=2)), _profile("m2", precision="fp32")):
        with pytest.raises(ProfileMismatchError):
            samples_from([_profile("m1"), bad])
    for bad in (_profile("m1"), _profile("m2", unit="instructions")):
        with pytest.raises(PredictError):
            samples_from([_profile("m1"), bad])
    with pytest.raises(ProfileError):
        samples_from([_profile("m", whole=Percentiles(p50=math.nan, p90=1.0, p99=1.0, runs=1))])


def test_cold_start_says_where_its_peak_comes_from():
    nano = cold_start(load_board("jetson-nano"), precision="fp16")
    assert nano.origin == "datasheet"
    assert nano.other.roofline.macs_per_ms == pytest.approx(472e9 / 2 * 0.3 / 1e3)
    pi = cold_start(load_board("rpi-4b"), precision="fp32", threads=2)
    assert pi.origin == "derived"
    assert pi.other.roofline.macs_per_ms == pytest.approx(2 * 1.5e9 * 4 * 0.3 / 1e3)
    assert cold_start(load_board("rpi-4b"), precision="int8", threads=99).other.roofline.macs_per_ms == pytest.approx(
        4 * 1.5e9 * 8 * 0.3 / 1e3
    )
    prediction = predict(pi, [Work("k", "conv", 10**8, 10**5)])
    assert prediction.origin == "derived"
    assert prediction.high_ms / prediction.low_ms == pytest.approx(9)


def test_every_board_gets_a_prediction_or_a_named_error():
    answered = 0
    for board in list_boards():
        for precision in ("fp32", "fp16", "int8"):
            try:
                calibration = cold_start(board, precision=precision)
            except PredictError as error:
                assert board.id in str(error)  # noqa: PT017
                continue
            answered += 1
            assert calibration.origin in ("datasheet", "derived")
            assert calibration.remarks
    assert answered > 60
    nothing = DeviceProfile(id="x", name="x", kind="mcu", source="s")
    with pytest.raises(PredictError, match="neither"):
        cold_start(nothing, precision="int8")
    for bad in ({"precision": "fp64"}, {"precision": "int8", "threads": 0}):
        with pytest.raises(PredictError):
            cold_start(load_board("rpi-4b"), **bad)
