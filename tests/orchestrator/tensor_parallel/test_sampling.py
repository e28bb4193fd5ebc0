"""The numbers of sampling at their ends."""

import pytest
import torch

from orchestrator.tensor_parallel.errors import PromptError
from orchestrator.tensor_parallel.sampling import SamplingOptions, choose, probabilities


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
def test_the_coldest_temperatures_draw_the_most_probable_token(temperature):
    logits = torch.tensor([20.0, -30.0, 21.0, 5.0])
    options = SamplingOptions(temperature=temperature)
    options.check()
    assert torch.isfinite(probabilities(logits, options)).all()
    assert choose(logits, options, [], torch.Generator().manual_seed(0)) == 2


def test_a_seed_beyond_64_bit_is_named():
    with pytest.raises(PromptError, match="64 bit"):
        SamplingOptions(seed=1 << 63).check()
