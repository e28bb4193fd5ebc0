"""Products with few tokens and the race between kernels."""

import itertools
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
import torch

from orchestrator.tensor_parallel import few, kernels, lowbit, native, speed
from orchestrator.tensor_parallel.errors import MemoryLimitError
from orchestrator.tensor_parallel.memory import resident_peak
from orchestrator.tensor_parallel.rank_runner import RankRunner


@pytest.fixture
def library():
    found = native.library()
    assert found is not None, "the project's set-up installs a compiler"
    return found


def values(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(37, 51), (16, 64), (130, 96), (3, 7)])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_few_tokens_are_multiplied_as_in_float64(library, shape, count):
    weights = values(*shape)
    across, down = values(count, shape[1], seed=2), values(count, shape[0], seed=3)
    exact = across.double() @ weights.double().T
    torch.testing.assert_close(few.product(library, across, weights).double(), exact, atol=5e-5, rtol=1e-5)
    mixed = down.double() @ weights.double()
    torch.testing.assert_close(few.mix(library, down, weights).double(), mixed, atol=5e-5, rtol=1e-5)


def test_a_token_is_the_same_alone_and_among_others(library):
    weights, x, turned = values(70, 99), values(7, 99, seed=2), values(7, 70, seed=3)
    alone = torch.cat([few.product(library, x[i : i + 1], weights) for i in range(7)])
    assert torch.equal(alone, few.product(library, x, weights))
    alone = torch.cat([few.mix(library, turned[i : i + 1], weights) for i in range(7)])
    assert torch.equal(alone, few.mix(library, turned, weights))


def test_the_outcome_of_the_race_is_kept_and_a_damaged_file_races_again(library, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "headtail").mkdir()
    torch_wins = kernels.Race(chosen="torch", c_us=2.0, torch_us=1.0)
    c_wins = kernels.Race(chosen="c", c_us=1.0, torch_us=2.0)
    profile = kernels.KernelProfile(
        target="any", threads=1, float32_one=torch_wins, float32_few=c_wins, int8=c_wins, int4=torch_wins
    )
    runs = []
    monkeypatch.setattr(kernels, "race", lambda threads: runs.append(threads) or profile)
    kernels._settled.cache_clear()
    try:
        assert kernels.kernel_profile() == profile
        kernels._settled.cache_clear()
        assert kernels.kernel_profile() == profile
        assert len(runs) == 1, "the second process reads what the first found"
        kernels.profile_path(torch.get_num_threads()).write_text("{")
        kernels._settled.cache_clear()
        assert kernels.kernel_profile() == profile
        assert len(runs) == 2
    finally:
        kernels._settled.cache_clear()
    assert [profile.chosen("float32", tokens) for tokens in (1, 2, few.FEW, few.FEW + 1)] == [
        "torch",
        "c",
        "c",
        "torch",
    ]
    assert (profile.chosen("int8", 1), profile.chosen("int4", 9)) == ("c", "torch")


def test_the_race_times_every_candidate(library):
    found = kernels.race(torch.get_num_threads())
    for one in (found.float32_one, found.float32_few, found.int8, found.int4):
        assert 0 < one.c_us < 1e6
        assert 0 < one.torch_us < 1e7
    assert found.int4.chosen == "c", "unpacking to float32 cannot win"
    assert msgspec.json.decode(msgspec.json.encode(found), type=kernels.KernelProfile) == found


def test_what_is_read_to_measure_the_rate_fits_no_cache_and_leaves_memory(tmp_path):
    for name, size in (("index0", "48K"), ("index3", "96M"), ("index4", "lots")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size + "\n")
    assert speed.last_level_cache_bytes(tmp_path) == 96 << 20
    assert speed.last_level_cache_bytes(tmp_path / "none") == 0
    assert speed.sample_bytes(96 << 20, 1 << 40) == 384 << 20
    assert speed.sample_bytes(1 << 20, None) == 256 << 20
    assert speed.sample_bytes(96 << 20, 400 << 20) == 100 << 20


def test_the_rate_is_that_of_distinct_matrices_in_turn(monkeypatch):
    read = []
    monkeypatch.setattr(speed, "sample_bytes", lambda cache, available: 3 * speed._MATRIX_BYTES)
    monkeypatch.setattr(speed, "product", lambda x, weights: read.append(weights.data_ptr()))
    assert speed.measured_read_mb_per_s() > 0
    assert len(set(read)) == 3
    assert all(one != other for one, other in itertools.pairwise(read))


def test_the_rate_of_a_child_does_not_count_as_memory_of_this_process():
    before = resident_peak()
    assert speed.read_mb_per_s_of_a_child(1) > 0
    assert resident_peak() - before < 64 << 20


def test_without_a_compiler_torch_multiplies(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    weights, x = values(8, 5), values(3, 5, seed=2)
    assert kernels.kernel_profile() is None
    assert torch.equal(kernels.product(x, weights), torch.nn.functional.linear(x, weights))
    packed = torch.from_numpy(lowbit.pack(values(16, 32).numpy(), "int8", by_column=False))
    assert kernels.product(values(2, 32), lowbit.Packed(packed, 16, 32, "int8", False)).shape == (2, 16)


def test_code_that_a_start_ran_through_is_given_back_and_runs_again():
    program = """
import torch
from orchestrator.tensor_parallel.memory import forget_code, resident_now
before = resident_now()
forget_code()
after = resident_now()
x = torch.ones(4, 4)
assert float((x @ x).sum()) == 64
print(before - after)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(found.stdout) > 10 << 20


def test_a_limit_below_what_the_start_took_is_refused_with_the_one_that_works(cluster, tiny):
    runner = cluster(tiny.folder, ranks=1).engine.runner
    with pytest.raises(MemoryLimitError, match="--memory-limit 4005MB"):
        RankRunner(replace(runner.task, memory_limit=3 * 10**9), base_bytes=1 << 20, started_bytes=4 * 10**9)
