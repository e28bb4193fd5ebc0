"""The fuzz bench finds what it looks for, and finds nothing in the decoders of this tree."""

import random
import time

import pytest

from benchmarks import bench_fuzz
from benchmarks.bench_fuzz import Target, fuzz, make_case, targets
from device_profiles.errors import EdgeError


class NamedError(EdgeError):
    """What a decoder should raise."""


def raises(error):
    def decode(data):
        raise error

    return decode


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_thousand_damaged_inputs_end_in_a_value_or_a_named_error(target):
    outcome = fuzz(target, 1000, seed=1)
    assert (outcome.failures, outcome.first_failure) == (0, None)
    assert 0 < outcome.accepted < 1000  # some mutations are harmless, most are not
    for seed in target.seeds:
        target.decode(seed)


@pytest.mark.parametrize(
    ("error", "found"),
    [(KeyError("x"), "KeyError"), (MemoryError(), "MemoryError"), (EdgeError("no subclass"), "without a subclass")],
)
def test_an_unnamed_error_is_counted(error, found):
    outcome = fuzz(Target("bad", (b"seed",), raises(error)), 20, seed=1)
    assert outcome.failures == outcome.cases == 20
    assert found in outcome.first_failure


def test_a_named_error_is_not_counted():
    assert fuzz(Target("good", (b"seed",), raises(NamedError("as it should"))), 20, seed=1).failures == 0


def test_a_hang_is_counted_and_the_next_case_runs(monkeypatch):
    monkeypatch.setattr(bench_fuzz, "HANG_S", 0.02)

    def decode(data):
        while True:
            time.perf_counter()

    outcome = fuzz(Target("endless", (b"seed",), decode), 3, seed=1)
    assert outcome.failures == outcome.cases == 3
    assert "no answer" in outcome.first_failure


def test_the_seed_chooses_all_cases():
    target = targets()[0]
    first, second, other = (random.Random(seed) for seed in (1, 1, 2))
    cases = [[make_case(target, chance) for _ in range(50)] for chance in (first, second, other)]
    assert cases[0] == cases[1] != cases[2]
