"""Parts mem_70b_fp32 and mem_70b_q4 of bench_llm: Llama-2-70B's shape cut for 8 ranks, of which 2 really run, under an enforced limit.

Weights are random. In float32 a rank's file has 4 distinct layers, which stand for all 80 in turn; each is forgotten by the page
cache when it was read, so every layer really comes from storage. At 4 bit the files are whole. Storage gives each rank
300 MB/s, so that the prediction of `headtail llm plan` can be held against a rate that is known.

    python -m benchmarks.bench_llm_memory SPEC       one rank, started by the parts
"""

import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.bench_llm import Sizes
from benchmarks.cgroup import Cgroup, evict
from benchmarks.llm_programs import AllreduceSpec, links_between, say
from benchmarks.llm_rig import CACHE, Program, key_file
from benchmarks.rows import Measurement
from device_profiles.link import parse_link
from orchestrator.tensor_parallel import kernels, rank_runner
from orchestrator.tensor_parallel.buffers import WeightFile
from orchestrator.tensor_parallel.checkpoint import Checkpoint
from orchestrator.tensor_parallel.collectives import MeshCollective
from orchestrator.tensor_parallel.config import Encoding, ModelConfig
from orchestrator.tensor_parallel.layout import PAGE_BYTES, Block, file_bytes, file_offsets
from orchestrator.tensor_parallel.lowbit import Packed, encoded_bytes
from orchestrator.tensor_parallel.memory import forget_code, resident_now, resident_peak
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import cut
from orchestrator.tensor_parallel.plan import plan_cluster
from orchestrator.tensor_parallel.protocol import Member, RunSettings, Segment
from orchestrator.tensor_parallel.rank_runner import RankRunner, RankTask
from orchestrator.tensor_parallel.shard_set import SCHEMA, NodeEntry, ShardSet

RANKS, RUN, DISTINCT = 8, 2, 4
STORAGE_MB_PER_S = 300.0
SETTINGS = RunSettings(slots=1, context=512, step_tokens=16, deadline_s=600.0)
SHAPE = ModelConfig(
    family="llama", layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocabulary=32000, context=4096,
    norm_eps=1e-5, rope_base=10000.0,
)  # fmt: skip


class RankSpec(msgspec.Struct, frozen=True):
    """One of the ranks that run."""

    weights: Encoding
    rank: int
    limit: int
    key: str


@dataclass(frozen=True)
class Cycle:
    """Where the layers lie in a rank's file, and how many of them are there."""

    start: int
    stride: int
    layers: int
    there: int

    def place(self, offset: int) -> int:
        """Where what the index puts at `offset` really lies."""
        end = self.start + self.layers * self.stride
        if offset < self.start:
            return offset
        if offset >= end:
            return offset - (self.layers - self.there) * self.stride
        return self.start + (offset - self.start) % (self.there * self.stride)


class CyclicFile(WeightFile):
    """A rank's file in which few layers stand for all."""

    def __init__(self, path: Path, *, drop_behind: bool, cycle: Cycle) -> None:
        super().__init__(path, drop_behind=drop_behind)
        self._cycle = cycle

    def read(self, offset: int, into: memoryview) -> None:
        """As `WeightFile.read`."""
        super().read(self._cycle.place(offset), into)


def shard_set(weights: Encoding) -> ShardSet:
    """The set of eight equal ranks."""
    config = SHAPE.encoded(weights)
    shares = cut(config, [1.0] * RANKS)
    nodes = tuple(NodeEntry(name=f"n{rank}", capability=1.0, held=share) for rank, share in enumerate(shares))
    return ShardSet(schema=SCHEMA, model="llama-2-70b-shape", source_sha256="", config=config, nodes=nodes)


def cycle_of(blocks: list[Block], weights: Encoding) -> Cycle:
    """The place of the layers: all there at 4 bit."""
    offsets = file_offsets(blocks)
    first = next(i for i, block in enumerate(blocks) if block.layer == 0)
    stride = next(o for block, o in zip(blocks, offsets, strict=True) if block.layer == 1) - offsets[first]
    return Cycle(offsets[first], stride, SHAPE.layers, SHAPE.layers if weights == "int4" else DISTINCT)


def write_rank(path: Path, weights: Encoding, rank: int) -> None:
    """A rank's file of random weights, once."""
    blocks = shard_set(weights).blocks(rank)
    cycle = cycle_of(blocks, weights)
    wanted = file_bytes(blocks) - (cycle.layers - cycle.there) * cycle.stride
    if path.is_file() and path.stat().st_size == wanted:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(rank)
    plain = (random.standard_normal(1 << 22) * 0.01).astype(np.float32).tobytes()
    tiles = {}
    for encoding in ("int8", "int4"):
        one = encoded_bytes(encoding, 512)
        data = random.integers(0, 256, (1 << 15, one), dtype=np.uint8)
        data[:, -32:] = np.full(16, 0.001, np.float16).view(np.uint8)
        tiles[encoding] = data.tobytes()
    with path.open("wb") as stream:
        for block, offset in zip(blocks, file_offsets(blocks), strict=True):
            if 0 <= block.layer < SHAPE.layers and block.layer >= cycle.there:
                continue
            for placed in block.placed:
                stream.seek(cycle.place(offset) + placed.offset)
                source = plain if placed.part.encoding == "float32" else tiles[placed.part.encoding]
                left = placed.nbytes
                while left:
                    left -= stream.write(source[: min(left, len(source))])
        stream.truncate(-(-wanted // PAGE_BYTES) * PAGE_BYTES)


def prepare(weights: Encoding) -> None:
    """Write the files of the ranks that run, once: 6 GB in float32, 10 GB at 4 bit."""
    for rank in range(RUN):
        write_rank(_file(weights, rank), weights, rank)


def main() -> None:
    """Be one rank: each line asks for a step, the answer is its milliseconds and the peak."""
    torch.set_num_threads(1)
    kernels.kernel_profile()
    started = resident_peak()
    forget_code()
    base = resident_now()
    spec = msgspec.json.decode(sys.argv[1], type=RankSpec)
    made = shard_set(spec.weights)
    members = tuple(
        Member(rank=rank, name=f"n{rank}", host="127.0.0.1", port=1, share=made.nodes[rank].held) for rank in range(RUN)
    )
    file, cycle = _file(spec.weights, spec.rank), cycle_of(made.blocks(spec.rank), spec.weights)
    rank_runner.WeightFile = lambda path, *, drop_behind: CyclicFile(path, drop_behind=drop_behind, cycle=cycle)  # type: ignore[assignment,misc]
    runner = RankRunner(
        RankTask(made, file, spec.rank, members, SETTINGS, spec.limit), base_bytes=base, started_bytes=started
    )
    hosts = tuple(f"127.0.0.{rank + 1}" for rank in range(RUN))
    mesh = AllreduceSpec(spec.rank, hosts, spec.key, 0, 0)
    collective = MeshCollective(spec.rank, links_between(mesh, 7140, plain=False), timeout_s=600)
    say({"ready": True, "planned": runner.memory.total, "streamed": runner.memory.streamed})
    place = 0
    for line in sys.stdin:
        count = int(line)
        segments = (Segment(0, place, count),)
        place += count
        began = time.perf_counter()
        with torch.inference_mode():
            x = runner.embed([1] * count) if spec.rank == 0 else torch.zeros((count, SHAPE.hidden))
            out = runner.forward(x, segments, collective)
            if out is not None:
                runner.logits(out[-1:])
        times = runner.window.times
        say({
            "ms": 1e3 * (time.perf_counter() - began), "peak": resident_peak(), "load_s": times.load_s, "wait_s": times.wait_s,
        })  # fmt: skip
        times.reset()


def _file(weights: Encoding, rank: int) -> Path:
    return CACHE / "llama-2-70b-shape" / weights / f"rank{rank}.bin"


def _rows(weights: Encoding, limit: int, steps: int) -> tuple[int, int, float, float]:
    """Peak of VmHWM and of the groups' charge, measured and predicted milliseconds a token."""
    prepare(weights)
    evict(_file(weights, 0).parent)
    key, predicted = str(key_file()), predicted_ms(weights, limit)
    with contextlib.ExitStack() as stack:
        groups, programs = [], []
        for rank in range(RUN):
            group = Cgroup(f"70b-{rank}", memory_bytes=limit, read_mb_per_s=STORAGE_MB_PER_S, folder=CACHE)
            stack.callback(group.close)
            groups.append(group)
        from concurrent.futures import ThreadPoolExecutor

        def start(rank: int) -> Program:
            spec = msgspec.json.encode(RankSpec(weights, rank, limit, key)).decode()
            return Program(
                f"rank {rank}", groups[rank].command([sys.executable, "-m", "benchmarks.bench_llm_memory", spec])
            )

        with ThreadPoolExecutor(RUN) as pool:
            programs = list(pool.map(start, range(RUN)))
        for program in programs:
            stack.callback(program.close)
        times, peaks = [], []
        for step in range(steps + 1):
            for program in programs:
                program.tell("8" if step == 0 else "1")
            answers = [program.answer() for program in programs]
            print(json.dumps(answers), flush=True)
            peaks = [answer["peak"] for answer in answers]
            if step:
                times.append(answers[0]["ms"])
        charged = max(group.peak_bytes for group in groups)
    return max(peaks), charged, statistics.median(times), predicted


def predicted_ms(weights: Encoding, limit: int) -> float:
    """What the planner says of eight such nodes on this machine's links."""
    rate = product_rate(weights)
    nodes = [
        Node(name=f"n{rank}", memory_limit=str(limit), storage_mb_per_s=STORAGE_MB_PER_S, read_mb_per_s=rate)
        for rank in range(RANKS)
    ]
    return plan_cluster(SHAPE.encoded(weights), nodes, parse_link("10gbit/0.1ms"), SETTINGS).token_ms


def product_rate(weights: Encoding) -> float:
    """MB/s at which weights are computed with: a short race over more than the caches hold."""
    rows, columns = 4096, 2048
    x, taken = torch.randn(1, columns), []
    nbytes = encoded_bytes(weights, rows * columns)
    plain = [torch.randn(rows, columns) for _ in range(4)] if weights == "float32" else []
    packed = (
        []
        if plain
        else [Packed(torch.zeros(nbytes, dtype=torch.uint8), rows, columns, weights, False) for _ in range(8)]
    )
    for turn in range(40):
        began = time.perf_counter()
        if plain:
            torch.nn.functional.linear(x, plain[turn % 4])
        else:
            kernels.product(x, packed[turn % 8])
        taken.append(time.perf_counter() - began)
    return nbytes / statistics.median(taken) / 1e6


def mem_70b_fp32_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """3.1 GB, the paper's figure."""
    return _measurements("mem_70b_fp32", "float32", 3_100_000_000, 2)


def mem_70b_q4_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """1.0 GB."""
    return _measurements("mem_70b_q4", "int4", 1_000_000_000, 4)


def _measurements(name: str, weights: Encoding, limit: int, steps: int) -> list[Measurement]:
    peak, charged, measured, predicted = _rows(weights, limit, steps)
    files = "4 distinct layers read in turn and evicted" if weights == "float32" else "whole slices on disk"
    what = f"Llama-2-70B shape, {weights}, 8 ranks planned, 2 run, {files}, limit of {limit / 1e9:.1f} GB enforced by a control group"
    return [
        Measurement(id=name, what=f"peak of a rank (VmHWM), {what}", value=peak, unit="B", direction="<=", bar=limit),
        Measurement(id=f"{name}.charged", what="the same: most that a control group was charged, page cache included: the kernel lets it grow up to the limit", value=charged, unit="B", direction="info"),
        Measurement(id=f"{name}.predicted", what=f"how far the planner's ms a token ({predicted:.0f}) is from those measured ({measured:.0f}), storage of 300 MB/s a rank", value=abs(predicted - measured) / measured, unit="", direction="<=", bar=0.15),
    ]  # fmt: skip


PARTS = {"mem_70b_fp32": mem_70b_fp32_rows, "mem_70b_q4": mem_70b_q4_rows}

if __name__ == "__main__":
    main()
