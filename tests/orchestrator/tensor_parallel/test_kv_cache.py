"""The cache of keys and values: as int8 it is smaller, and close; and it does not depend on how it was filled."""

import pytest
import torch

from orchestrator.tensor_parallel.engine import Piece
from orchestrator.tensor_parallel.generation import Generator, generate
from orchestrator.tensor_parallel.kv_cache import KvCache, bytes_per_token
from orchestrator.tensor_parallel.protocol import Segment
from tests.orchestrator.tensor_parallel.test_generation import PROMPTS, greedy, request


def test_int8_values_differ_by_half_a_step_at_most_and_zeros_stay(cluster, tiny):
    config = cluster(tiny.folder, ranks=1).engine.config
    cache = KvCache(config, 2, slots=2, context=16, kind="int8")
    values = torch.randn((2, 5, config.head_dim), generator=torch.Generator().manual_seed(2))
    values[0, 3] = 0
    keys, found = cache.write(1, Segment(1, 0, 5), 3 * values, values)
    step = values.abs().amax(-1, keepdim=True) / 127
    assert bool(((found - values).abs() <= step / 2 + 1e-6).all())
    assert bool(((keys - 3 * values).abs() <= 3 * step / 2 + 1e-6).all())
    assert bool((found[0, 3] == 0).all())
    ratio = bytes_per_token(config, 2, "int8") / bytes_per_token(config, 2, "float32")
    assert ratio == (config.head_dim + 4) / (4 * config.head_dim)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_what_was_accepted_of_a_branch_is_moved_to_its_place(kind, cluster, tiny):
    config = cluster(tiny.folder, ranks=1).engine.config
    cache = KvCache(config, 1, slots=1, context=16, kind=kind)
    rows = torch.arange(8.0).view(1, 8, 1).expand(1, 8, config.head_dim)
    cache.write(0, Segment(0, 0, 8, branches=2, depth=3), rows, rows)
    fresh = torch.full((1, 1, config.head_dim), 99.0)
    keys, _ = cache.write(0, Segment(0, 4, 1, moved_from=5, moved=2), fresh, fresh)
    assert keys[0, :, 0].tolist() == pytest.approx([0, 1, 5, 6, 99], rel=1e-5)


def test_int8_keeps_the_logits_close_and_a_lost_cache_gives_the_same_tokens(cluster, tiny):
    exact = cluster(tiny.folder, ranks=2).engine
    small = cluster(tiny.folder, ranks=2, kv_cache="int8").engine
    prompt = tuple(PROMPTS[1][:32])
    wanted, found = (engine.step([Piece(0, 0, prompt, len(prompt))])[0] for engine in (exact, small))
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert (
        small.runner.memory.cache < 0.7 * exact.runner.memory.cache
    )  # heads of 8 values; the larger, the closer to 1/4
    generator = Generator(small, None)
    try:
        whole = generate(generator, request(PROMPTS[0], 24))
        seen = []

        def interrupt(event):
            seen.extend(event.tokens)
            if len(seen) == 9:
                next(iter(small.epoch.links.values())).close()

        assert generate(generator, request(PROMPTS[0], 24), on_event=interrupt) == whole
        assert generator.counters.restarts > 0
        same = sum(a == b for a, b in zip(whole, greedy(tiny.model, PROMPTS[0], 24), strict=True))
        assert same > 0
    finally:
        generator.close()
