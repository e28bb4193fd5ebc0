"""Every kernel, in every variant, equals the NumPy model of TensorFlow Lite Micro on random shapes, bit for bit."""

import functools

import kernel_cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@functools.lru_cache(maxsize=64)
def batch(maker, seed, count):
    rng = np.random.default_rng(seed)
    return [kernel_cases.MAKERS[maker](rng) for _ in range(count)]


@pytest.mark.parametrize("maker", sorted(kernel_cases.MAKERS))
@pytest.mark.parametrize("variant", ["native", "clang"])
def test_host_kernels_equal_the_model_without_undefined_behaviour(runner, variant, maker):
    assert runner(variant)(batch(maker, 1, 250)) == []


@pytest.mark.mcu
@pytest.mark.parametrize("variant", ["m3", "m4", "m4-clang", "m7-portable", "m33", "m55", "m55-clang"])
def test_board_kernels_equal_the_model(runner, variant):
    cases = [case for maker in sorted(kernel_cases.MAKERS) for case in batch(maker, 2, 200)]
    assert runner(variant)(cases) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), maker=st.sampled_from(sorted(kernel_cases.MAKERS)))
def test_any_case_equals_the_model(runner, seed, maker):
    assert runner("native")(batch(maker, seed, 8)) == []
