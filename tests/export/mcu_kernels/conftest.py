"""Makes the support modules of this folder importable and builds each runner once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kernel_harness


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """``runner(name)`` -> function from cases to lines of differences."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = kernel_harness.build(kernel_harness.VARIANTS[name], tmp_path_factory.mktemp(name))
        variant = kernel_harness.VARIANTS[name]
        return lambda cases: kernel_harness.differences(cases, kernel_harness.run(variant, built[name], cases))

    return get
