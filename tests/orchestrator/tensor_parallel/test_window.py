import pytest
import torch

from orchestrator.tensor_parallel.buffers import WeightFile
from orchestrator.tensor_parallel.errors import MemoryLimitError, ShardError
from orchestrator.tensor_parallel.loads import Load, View
from orchestrator.tensor_parallel.window import Window
from tests.orchestrator.tensor_parallel.test_equality import PROMPT, reference, stepwise


@pytest.fixture
def numbers(tmp_path):
    """A file of float32 numbers, and loads of ten each."""
    path = tmp_path / "weights"
    values = torch.arange(100, dtype=torch.float32)
    path.write_bytes(values.numpy().tobytes())
    cycle = tuple(Load(f"l{i}", 40, ((40 * i, 40, 0),), (View("x", 0, (10,)),)) for i in range(10))
    return WeightFile(path, drop_behind=True), cycle, values


@pytest.mark.parametrize("resident", [set(), {0, 4, 9}, set(range(10))])
@pytest.mark.parametrize("size", [2, 4])
def test_every_round_gives_every_block_in_order(numbers, resident, size):
    file, cycle, values = numbers
    window = Window(file, cycle, frozenset(resident), size=size)
    try:
        for _ in range(3):
            for index in range(10):
                with window.take(index) as tensors:
                    assert torch.equal(tensors["x"], values[10 * index : 10 * index + 10])
        assert window.streams == (len(resident) < 10)
    finally:
        window.close()


def test_rewind_begins_again_in_the_middle_of_a_round(numbers):
    file, cycle, values = numbers
    window = Window(file, cycle, frozenset())
    try:
        for stop in (0, 1, 7):
            for index in range(stop):
                with window.take(index):
                    pass
            window.rewind()
        with window.take(0) as tensors:
            assert torch.equal(tensors["x"], values[:10])
    finally:
        window.close()


def test_a_file_that_ends_early_is_an_error_for_whoever_waits(numbers, tmp_path):
    file, cycle, _ = numbers
    (tmp_path / "weights").write_bytes(b"\0" * 100)
    window = Window(file, cycle, frozenset())
    try:
        with window.take(0), window.take(1):
            pass
        with pytest.raises(ShardError, match="found the end"), window.take(2):
            pass
        assert window.failed
    finally:
        window.close()


def test_below_the_limit_blocks_stream_and_nothing_changes(cluster, tiny):
    with pytest.raises(MemoryLimitError) as refused:
        cluster(tiny.folder, ranks=1, limit="1MB")
    words = str(refused.value).split("--memory-limit ")[1].split(",")[0].split("MB")[0]
    running = cluster(
        tiny.folder, ranks=1, limit=f"{words}MB"
    )  # another start takes a little more, and the number works
    runner = running.engine.runner
    assert runner.memory.total <= int(words) * 10**6
    found = stepwise(running.engine, PROMPT)
    torch.testing.assert_close(found, reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


def test_the_papers_mode_keeps_nothing_and_loads_everything_for_each_step(cluster, tiny):
    runner = cluster(tiny.folder, ranks=2, collective="paper", paper=True).engine.runner
    assert runner.memory.resident == 0
    assert runner.memory.streamed == sum(load.nbytes for load in runner.task.loads.cycle)
    assert runner.window.streams
