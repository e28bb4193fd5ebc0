import math

import msgspec
import pytest

from device_profiles.measurement import (
    Condition,
    EngineSettings,
    KernelTime,
    NoisyProfileError,
    Percentiles,
    Profile,
    ProfileError,
    ProfileMismatchError,
    check_profile,
    dump_profile,
    judge,
    load_profile,
    parse_profile,
    require_usable,
)

ENGINE = EngineSettings(name="onnxruntime", version="1.32.0")


def _time(p50, **more):
    return Percentiles(**({"p50": p50, "p90": 2 * p50, "p99": 3 * p50, "runs": 50} | more))


def _profile(**changes):
    kernels = (
        KernelTime(name="k0", nodes=("a", "b"), kind="conv", macs=10, bytes=20, latency=_time(1.0)),
        KernelTime(name="reorder", nodes=(), kind="layout", macs=0, bytes=9, latency=_time(0.5)),
    )
    values = {
        "board": "linux-x86-64", "model": "m", "model_sha256": "0" * 64, "precision": "fp32", "engine": ENGINE,
        "created": "2026-01-01T00:00:00Z", "whole": _time(2.0), "kernels": kernels,
    }  # fmt: skip
    return Profile(**(values | changes))


def test_profile_survives_the_file_and_sums(tmp_path):
    profile = _profile()
    path = tmp_path / "p.json"
    path.write_bytes(dump_profile(profile))
    assert load_profile(path) == profile
    assert profile.kernel_sum + profile.unaccounted == profile.whole.p50
    assert profile.mapped_share == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_impossible_times_are_refused(bad):
    broken = KernelTime(name="k9", nodes=(), kind="conv", macs=1, bytes=1, latency=_time(bad, p90=2.0))
    with pytest.raises(ProfileError, match="k9"):
        check_profile(_profile(kernels=(broken,)))
    with pytest.raises(ProfileError, match="whole"):
        check_profile(_profile(whole=_time(bad, p90=2.0, p99=2.0)))


def test_percentiles_must_ascend_and_a_node_has_one_kernel():
    with pytest.raises(ProfileError, match="p50 <= p90"):
        check_profile(_profile(whole=_time(1.0, p90=0.5)))
    kernel = _profile().kernels[0]
    with pytest.raises(ProfileError, match="'a'"):
        check_profile(_profile(kernels=(kernel, msgspec.structs.replace(kernel, name="k1"))))


def test_unknown_fields_and_other_schemas_are_refused(tmp_path):
    data = dump_profile(_profile())
    with pytest.raises(ProfileError, match="colour"):
        parse_profile(data.replace(b'"board"', b'"colour":1,"board"', 1))
    with pytest.raises(ProfileError, match="schema 1"):
        parse_profile(data.replace(b'"schema": 1', b'"schema": 2'))
    for junk in (b"", b"[]", b"\xff", b'{"board":'):
        with pytest.raises(ProfileError):
            parse_profile(junk)
    with pytest.raises(ProfileError):
        load_profile(tmp_path / "none.json")


@pytest.mark.parametrize(
    "field", [{"version": "1.23.0"}, {"optimisation": "extended"}, {"threads": 4}, {"name": "litert"}]
)
def test_a_profile_of_other_settings_is_refused_with_the_reason(field):
    wanted = msgspec.structs.replace(ENGINE, **field)
    with pytest.raises(ProfileMismatchError, match=next(iter(field))):
        require_usable(_profile(), engine=wanted, board="linux-x86-64")


def test_board_power_mode_and_unit_must_match():
    good = _profile(power_mode="15W")
    assert require_usable(good, engine=ENGINE, board="linux-x86-64", power_mode="15W") is good
    with pytest.raises(ProfileMismatchError, match="rpi-5"):
        require_usable(good, engine=ENGINE, board="rpi-5")
    with pytest.raises(ProfileMismatchError, match="power mode"):
        require_usable(good, engine=ENGINE, board="linux-x86-64", power_mode="MAXN")
    with pytest.raises(ProfileMismatchError, match="instructions"):
        require_usable(_profile(unit="instructions"), engine=ENGINE, board="linux-x86-64")


def test_a_noisy_profile_is_not_planned_with():
    status, remarks = judge(Condition(contention=1.3))
    assert status == "noisy"
    with pytest.raises(NoisyProfileError, match=r"1\.30 times"):
        require_usable(_profile(status=status, remarks=remarks), engine=ENGINE, board="linux-x86-64")
    with pytest.raises(NoisyProfileError, match="Calibrate the board instead"):  # measuring again would not help
        require_usable(_profile(status="incomplete"), engine=ENGINE, board="linux-x86-64")
    assert judge(Condition(contention=1.05)) == ("ok", ())
    assert judge(Condition(), cov_of_repeats=0.2)[0] == "noisy"
    assert judge(Condition(throttled=("under-voltage",)))[0] == "throttled"
