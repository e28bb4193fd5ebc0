"""Measuring in turn: which rounds count, and what the engine's profiler takes for itself."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.measurement import ProfileError, check_profile
from edge_runtime.profile_hook import encode_chain, hook_ms
from edge_runtime.profile_in_turn import profile_in_turn
from edge_runtime.profile_rounds import fastest_blocks
from edge_runtime.profile_runs import runs_of_blocks
from edge_runtime.profiler import ProfileOptions
from export.chain_nets import NetBuilder, write_net


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30))
def test_the_fastest_third_of_the_blocks_counts(times):
    kept = fastest_blocks(times)
    assert kept == sorted(set(kept))
    assert len(times) <= 3 * len(kept) < len(times) + 3
    assert max(times[index] for index in kept) <= min(
        [times[i] for i in range(len(times)) if i not in kept], default=11
    )


def test_runs_of_blocks_are_those_of_the_named_blocks():
    assert runs_of_blocks([2, 3, 1], [0, 2]) == [0, 1, 5]


def test_the_empty_kernels_are_a_valid_model_and_what_they_show_too_long_is_the_profiler_s():
    model = onnx.load_from_string(encode_chain(40))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Gemm"] * 40
    plain_ns = [(20_000, 52_000)] * 3  # 32 kernels more take 32 us more: a microsecond each
    assert hook_ms([5.0, 6.0, 5.0], plain_ns) == pytest.approx(0.004)
    assert hook_ms([0.5], plain_ns) == 0.0


def test_networks_that_take_turns_each_have_a_profile_of_its_fastest_blocks(tmp_path):
    artefacts = []
    for name, width in (("thin", 8), ("wide", 32)):
        net = NetBuilder(32)
        artefacts.append(write_net(tmp_path, name, net.finish(net.conv(net.source, width, 3)), 32))
    options = ProfileOptions(runs=15, seconds=0.0, limit_s=3.0, kernels_only=True)
    calls = []
    found = profile_in_turn(artefacts, options, rounds=3, beside=calls.append)
    assert [one.model for one in found] == ["thin", "wide"]
    assert calls == [0, 1, 2]
    for profile in found:
        assert profile.whole.runs == 5
        assert profile.hook_ms is not None
        assert 0 < profile.hook_ms < 1
    with pytest.raises(ProfileError, match="hook_ms"):
        check_profile(
            type(profile)(**{field: getattr(profile, field) for field in profile.__struct_fields__} | {"hook_ms": -1.0})
        )
