"""Memory of a process from sizes of a network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from split.predict_memory import MemorySample, fit_memory
from split.roofline import PredictError

SIZES = st.integers(100_000, 50_000_000)


@given(
    sizes=st.lists(st.tuples(SIZES, SIZES), min_size=8, max_size=20, unique=True),
    constants=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4), st.floats(1e6, 2e7)),
)
def test_what_follows_the_model_is_found_again(sizes, constants):
    a, b, base = constants
    samples = [MemorySample(w, k, round(a * w + b * k + base)) for w, k in sizes]
    model = fit_memory(samples)
    for one in samples:
        found = model.growth(weights=one.weights, largest_kernel=one.largest_kernel)
        assert found == pytest.approx(one.growth, rel=0.02)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=6, max_size=12))
def test_constants_are_never_negative(sizes):
    model = fit_memory([MemorySample(*one) for one in sizes])
    assert min(model.per_weight, model.per_kernel, model.base_bytes) >= 0


@pytest.mark.parametrize("samples", [[], [MemorySample(1, 1, 1)] * 5, [MemorySample(1, 1, 0)] * 6])
def test_too_few_networks_or_no_growth_is_refused(samples):
    with pytest.raises(PredictError, match="Profile more"):
        fit_memory(samples)
