"""Measuring in turn: which rounds count, and what the engine's profiler takes for itself."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.measurement import ProfileError, check_profile
from edge_runtime.profile_hook import encode_chain, hook_ms
from edge_runtime.profile_in_turn import profile_in_turn
from edge_runtime.profile_rounds import SPEED_WINDOW, steady_rounds
from edge_runtime.profile_runs import runs_of_blocks
from edge_runtime.profiler import ProfileOptions
from export.chain_nets import NetBuilder, write_net

SUBJECTS = (2.0, 5.0, 1.0, 8.0, 3.0, 3.0, 40.0, 0.5)


def rounds_at(*speeds):
    """Rounds in which everything takes `speed` times as long; a pair is the speed of the first and of the second half."""
    pairs = [speed if isinstance(speed, tuple) else (speed, speed) for speed in speeds]
    half = len(SUBJECTS) // 2
    return [[ms * first for ms in SUBJECTS[:half]] + [ms * second for ms in SUBJECTS[half:]] for first, second in pairs]


def test_the_speed_with_most_rounds_counts_and_the_faster_one_of_two_alike():
    assert steady_rounds(rounds_at(1.0, 1.6, 1.62, 1.01, 1.59, 1.6)) == [1, 2, 4, 5]
    assert steady_rounds(rounds_at(1.6, 1.6, 1.0, 1.0)) == [2, 3]


def test_a_round_in_which_the_speed_changed_does_not_count():
    assert steady_rounds(rounds_at(1.0, (1.0, 1.6), 1.6, 1.01, 1.0)) == [0, 3, 4]
    assert steady_rounds(rounds_at((1.0, 1.6), (1.6, 1.0))) == [0, 1]  # nothing better is there


@given(st.lists(st.floats(1.0, 3.0), min_size=1, max_size=12))
def test_rounds_that_count_are_of_one_speed(speeds):
    kept = steady_rounds(rounds_at(*speeds))
    found = [speeds[index] for index in kept]
    assert kept == sorted(kept)
    assert max(found) <= min(found) * SPEED_WINDOW * (1 + 1e-9)
    assert all(sum(low <= one <= low * SPEED_WINDOW for one in speeds) <= len(kept) for low in speeds)


def test_runs_of_blocks_are_those_of_the_named_blocks():
    assert runs_of_blocks([2, 3, 1], [0, 2]) == [0, 1, 5]


def test_the_empty_kernels_are_a_valid_model_and_what_they_show_too_long_is_the_profiler_s():
    model = onnx.load_from_string(encode_chain(40))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Gemm"] * 40
    plain_ns = [(20_000, 52_000)] * 3  # 32 kernels more take 32 us more: a microsecond each
    assert hook_ms([5.0, 6.0, 5.0], plain_ns) == pytest.approx(0.004)
    assert hook_ms([0.5], plain_ns) == 0.0


def test_networks_that_take_turns_each_have_a_profile_of_the_same_rounds(tmp_path):
    artefacts = []
    for name, width in (("thin", 8), ("wide", 32)):
        net = NetBuilder(32)
        artefacts.append(write_net(tmp_path, name, net.finish(net.conv(net.source, width, 3)), 32))
    options = ProfileOptions(runs=15, seconds=0.0, limit_s=3.0, kernels_only=True)
    calls = []
    found = profile_in_turn(artefacts, options, rounds=3, beside=lambda: calls.append(1) or [1.0])
    assert [one.model for one in found.profiles] == ["thin", "wide"]
    assert (len(calls), found.rounds) == (3, 3)
    assert 1 <= len(found.kept) <= 3
    for profile in found.profiles:
        assert profile.whole.runs == 5 * len(found.kept)
        assert profile.hook_ms is not None
        assert 0 < profile.hook_ms < 1
    with pytest.raises(ProfileError, match="hook_ms"):
        check_profile(
            type(profile)(**{field: getattr(profile, field) for field in profile.__struct_fields__} | {"hook_ms": -1.0})
        )
