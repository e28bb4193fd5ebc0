"""`headtail calibrate` on this machine; the tests look at what is found, not at how long it took."""

import json

import pytest

import export.calibrate
from device_profiles.measurement import NoisyProfileError, ProfileError, dump_profile
from edge_runtime.profiler import ProfileOptions, profile_artefact
from export.calibrate import Measured, fit, fit_all, measure_chains, read_profiles, write_chains
from export.chain_nets import chain, write_net
from export.commands.calibrate import calibrate
from split.predict import dump_calibration, parse_calibration
from split.roofline import PredictError


@pytest.fixture(scope="module")
def measured():
    found = measure_chains(precision="int8", threads=1, count=5)
    return (*found.profiles, *found.noisy)


def test_a_chain_runs_as_integers_and_every_convolution_is_found(measured):
    for profile in measured:
        convs = [kernel for kernel in profile.kernels if kernel.kind in ("conv", "pointwise", "depthwise", "stem")]
        assert {kernel.op for kernel in convs} == {"QLinearConv"}
        assert all(kernel.macs > 0 and kernel.bytes > 0 for kernel in convs)
        assert profile.whole_beside is not None
        assert profile.memory.rss_peak > 0


def test_a_calibration_comes_back_from_its_file_and_says_how_wrong_it_is(measured):
    found = fit_all(measured)
    assert (found.precision, found.threads, found.origin) == ("int8", 1, "measured")
    assert {one.kind for one in found.classes} >= {"conv", "pointwise", "depthwise", "elementwise"}
    assert all(one.mape is not None and one.interval.low <= 1 <= one.interval.high for one in found.classes)
    assert parse_calibration(dump_calibration(found)) == found


def test_a_busy_board_is_refused_with_the_reason(measured):
    with pytest.raises(NoisyProfileError, match=r"5 of 5 noisy .*again"):
        fit(Measured((), measured))


def test_profiles_of_another_board_are_read_from_a_folder(tmp_path, measured):
    for index, profile in enumerate(measured):
        (tmp_path / f"{index}.json").write_bytes(dump_profile(profile))
    found = read_profiles(tmp_path)
    assert len(found.profiles) + len(found.noisy) == len(measured)


def test_chains_are_written_as_artefacts_that_a_device_can_profile(tmp_path, capsys):
    calibrate(write=tmp_path, precision="fp32", chains=1)
    (path,) = capsys.readouterr().out.split()
    assert json.loads((tmp_path / path / "manifest.json").read_text())["precision"] == "fp32"
    assert write_chains(tmp_path, precision="fp32", count=1)[0] == tmp_path / path


@pytest.mark.parametrize("chains", [0, -1, 3])
def test_too_few_chains_are_refused_before_anything_is_measured(tmp_path, chains, monkeypatch):
    monkeypatch.setattr(export.calibrate, "profile_in_turn", pytest.fail)
    with pytest.raises(PredictError, match=rf"at least 4 chains .* found {chains}\. .*--chains"):
        calibrate(chains=chains)
    if chains < 1:
        with pytest.raises(PredictError, match=rf"at least 1 chain .* found {chains}\. .*--chains"):
            calibrate(chains=chains, write=tmp_path)


def test_two_threads_are_measured_by_wall_time(tmp_path):
    data, size = chain(0, "fp32")
    artefact = write_net(tmp_path, "chain", data, size)
    profile = profile_artefact(artefact, ProfileOptions(threads=2, runs=10, limit_s=1.0, kernels_only=True))
    assert profile.engine.threads == 2
    assert profile.whole_cpu is None


def test_a_folder_without_profiles_is_named(tmp_path):
    with pytest.raises(ProfileError, match="found none"):
        read_profiles(tmp_path)
