"""The reference network beside profiles."""

import pytest

from benchmarks.pace import Pace, scaled
from device_profiles.measurement import EngineSettings, KernelTime, Percentiles, Profile, check_profile

TIMES = Percentiles(p50=2.0, p90=3.0, p99=4.0, runs=5, mean=2.5)


@pytest.fixture
def profile():
    kernel = KernelTime(name="k", nodes=("n",), kind="conv", macs=10, bytes=20, latency=TIMES)
    settings = EngineSettings(name="onnxruntime", version="1.32.0")
    return Profile(board="b", model="m", model_sha256="0" * 64, precision="fp32", engine=settings,
                   created="2026-01-02T00:00:00Z", whole=TIMES, whole_cpu=TIMES, kernels=(kernel,))  # fmt: skip


def test_all_that_took_time_is_scaled_and_nothing_else(profile):
    slower = scaled(profile, 2.0)
    for times in (slower.whole, slower.whole_cpu, slower.kernels[0].latency):
        assert (times.p50, times.p90, times.p99, times.mean, times.runs) == (4.0, 6.0, 8.0, 5.0, 5)
    assert slower.whole_beside is None
    assert (slower.kernels[0].macs, slower.kernels[0].bytes) == (10, 20)
    check_profile(slower)


def test_a_machine_that_became_half_as_fast_changes_nothing(profile, monkeypatch):
    pace = Pace()
    monkeypatch.setattr(pace, "_now", lambda: 2 * pace._usual)
    assert pace.measure(lambda: scaled(profile, 2.0)).whole.p50 == pytest.approx(2.0)


def test_a_pace_that_changes_is_measured_again(profile, monkeypatch):
    pace = Pace()
    seen = iter([1.0, 1.5, 1.0, 1.01])
    monkeypatch.setattr(pace, "_now", lambda: pace._usual * next(seen))
    taken = []
    pace.measure(lambda: taken.append(1) or profile)
    assert len(taken) == 2
