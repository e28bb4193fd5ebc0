"""Timed parts of bench_llm: sums over four hosts, and milliseconds a token against the paper's mode and other engines.

Hosts are network namespaces with 1 ms one way and 300 Mbit/s between any two; one thread a rank; files are evicted first;
what runs under a limit is in a control group. Systems that are compared are alive together and take turns.
"""

import importlib.metadata
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.bench_llm import Sizes
from benchmarks.cgroup import Cgroup, evict, unavailable
from benchmarks.llm_programs import AllreduceSpec
from benchmarks.llm_rig import (
    BIG,
    STREAMED,
    Limits,
    Program,
    hugging_face_folder,
    interleaved,
    key_file,
    lab,
    ours,
    plans,
    python,
    random_checkpoint,
    shards,
    streamed_shards,
)
from benchmarks.rows import Measurement
from orchestrator.tensor_parallel import kernels, lowbit, native
from orchestrator.tensor_parallel.checkpoint import Checkpoint, open_checkpoint

ROUNDS, TOKENS = 5, 8
VALUES, SUMS, SUM_ROUNDS = 4096, 20, 9
NO_LIMITS = (Limits(), Limits())
STORAGE_MB_PER_S = 200.0
ACCELERATE_BYTES = 700_000_000


def allreduce_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """Four ranks, 16 KiB."""
    names = ("a", "b", "c", "d")
    curve = importlib.util.find_spec("zmq") is not None
    kinds = ("mesh", "plain", "star", "gloo", *(["curve"] if curve else []))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with lab(*names) as net:
        addresses = tuple(net[name].address for name in names)
        import os

        os.environ["GLOO_SOCKET_IFNAME"] = _interface(net)
        programs = _started(net, names, addresses)
        try:
            for _ in range(SUM_ROUNDS):
                for kind in kinds:
                    for program in programs:
                        program.tell(kind)
                    times[kind].append(max([program.answer()["ms"] for program in programs]))  # all must be read
        finally:
            for program in programs:
                program.close()
    median = {kind: statistics.median(values) for kind, values in times.items()}
    print("  ".join(f"{kind} {value:.2f} ms" for kind, value in median.items()), flush=True)
    what = f"one sum over 4 ranks, 16 KiB, 1 ms one way, 300 Mbit/s: median of {SUM_ROUNDS} rounds of {SUMS}"
    plain, gloo = median["plain"], median["gloo"]
    over = median["curve"] / median["mesh"] if curve else None
    return [
        Measurement(id="allreduce.ms", what=f"{what}, encrypted mesh", value=median["mesh"], unit="ms", direction="info"),
        Measurement(id="allreduce.mesh", what="over an unencrypted mesh of raw sockets in the same run", value=median["mesh"] / plain, unit="x", direction="<=", bar=1.2, peer="raw sockets"),
        Measurement(id="allreduce.gloo", what="the same: gloo's time over ours", value=gloo / median["mesh"], unit="x", direction=">=", bar=4, peer="torch gloo", peer_version=str(torch.__version__)),
        Measurement(id="allreduce.curve", what="the same: a mesh of ZeroMQ sockets with CURVE over ours with TLS", value=over, unit="x", direction="info", peer="pyzmq", peer_version=importlib.metadata.version("pyzmq") if curve else None),
        Measurement(id="allreduce.star", what="the same: our encrypted star's time over the mesh's", value=median["star"] / median["mesh"], unit="x", direction="info"),
    ]  # fmt: skip


def _started(net: Any, names: tuple[str, ...], addresses: tuple[str, ...]) -> list[Program]:
    """All four must start before any is ready."""
    from concurrent.futures import ThreadPoolExecutor

    def start(rank: int) -> Program:
        spec = AllreduceSpec(rank, addresses, str(key_file()), VALUES, SUMS)
        command = python("allreduce", msgspec.json.encode(spec).decode())
        return Program(f"rank {rank}", net[names[rank]].command(command))

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(start, range(len(names))))


def _interface(net: Any) -> str:
    """Name of the hosts' network device."""
    found = net["a"].run(["cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    devices = [line.split(":")[0].strip() for line in found.splitlines()[2:]]
    return next(device for device in devices if device != "lo")


def paper_ratio_rows(source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """Everything this project adds, against TPI-LLM as published, under the same enforced limit."""
    folder, limits = shards(source, "smollm2"), _least(source)
    with lab("a", "b") as net, ours(net, folder, 7070, limits) as (full, groups):
        bare = [Limits(enforced=one.enforced) for one in limits]
        with ours(net, folder, 7071, bare, paper=True, collective="paper") as (paper, paper_groups):
            found = interleaved({"ours": full, "paper": paper}, rounds=ROUNDS, tokens=TOKENS)
            peaks = [group.peak_bytes for group in (*groups, *paper_groups)]
    print(f"charged at most: {[f'{peak / 1e6:.0f} MB' for peak in peaks]}", flush=True)
    equal = found["ours"]["tokens"] == found["paper"]["tokens"]
    what = f"ms a token, SmolLM2 float32, 2 ranks, 1 ms / 300 Mbit/s, {_limit_words(limits)}, 60 % of the resident size where --paper runs with that: {found['ours']['median']:.0f} ms against {found['paper']['median']:.0f} ms"
    value = found["ours"]["median"] / found["paper"]["median"] if equal else None
    return [
        Measurement(id="paper_ratio", what=what, value=value, unit="x", direction="<=", bar=0.4, peer="TPI-LLM as published (--paper)")
    ]  # fmt: skip


def accelerate_rows(source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """The same against Accelerate's disk offload on one device, which gets more memory: within our limit it is killed."""
    import accelerate

    folder, limits, peer = shards(source, "smollm2"), _sixty(source), hugging_face_folder(source)
    evict(peer)
    group = Cgroup("accelerate", memory_bytes=ACCELERATE_BYTES)
    try:
        with lab("a", "b") as net, ours(net, folder, 7070, limits) as (full, _):
            other = Program("Accelerate", group.command(python("accelerate", str(peer))))
            try:
                found = interleaved({"ours": full, "accelerate": other}, rounds=ROUNDS, tokens=4)
            finally:
                other.close()
    finally:
        group.close()
    what = f"ms a token, SmolLM2 float32, 2 ranks, 1 ms / 300 Mbit/s, 60 % of the resident size, {_limit_words(limits)}: {found['ours']['median']:.0f} ms against {found['accelerate']['median']:.0f} ms on one device without a link and with {ACCELERATE_BYTES / 1e6:.0f} MB"
    return [
        Measurement(id="accelerate", what=what, value=_ratio(found, "ours", "accelerate"), unit="x", direction="<=", bar=0.25, peer="Accelerate, disk offload", peer_version=accelerate.__version__)
    ]  # fmt: skip


def one_device_rows(source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """Where a model fits one device, one device wins."""
    import transformers

    peer = hugging_face_folder(source)
    with lab("a", "b") as net, ours(net, shards(source, "smollm2"), 7070, NO_LIMITS) as (full, _):
        other = Program("transformers", python("transformers", str(peer)))
        try:
            found = interleaved({"ours": full, "one": other}, rounds=ROUNDS, tokens=TOKENS)
        finally:
            other.close()
    what = f"ms a token, SmolLM2 float32, 2 ranks over 1 ms / 300 Mbit/s against one device with the model in memory: {found['ours']['median']:.0f} ms against {found['one']['median']:.0f} ms"
    return [
        Measurement(id="one_device", what=what, value=_ratio(found, "ours", "one"), unit="x", direction="info", peer="transformers", peer_version=transformers.__version__)
    ]  # fmt: skip


def low_bit_rows(source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """4 bit against float32, SmolLM2; and the kernel itself against ONNX Runtime's."""
    value, what = _low_bit(source, "smollm2", "SmolLM2")
    kernel, words = _kernel_ratio()
    return [
        Measurement(id="low_bit", what=what, value=value, unit="x", direction="<=", bar=0.95, peer="our float32"),
        Measurement(id="low_bit.kernel", what=words, value=kernel, unit="x", direction="<=", bar=1.3, peer="ONNX Runtime MatMulNBits"),
    ]  # fmt: skip


def low_bit_big_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """The same, 562 M random weights."""
    value, what = _low_bit(open_checkpoint(random_checkpoint("random-562m", BIG)), "random-562m", "random 562 M")
    return [
        Measurement(id="low_bit_big", what=what, value=value, unit="x", direction="<=", bar=0.5, peer="our float32")
    ]


def _low_bit(source: Checkpoint, name: str, title: str) -> tuple[float, str]:
    exact, packed = shards(source, name), shards(source, name, weights="int4")
    with lab("a", "b") as net, ours(net, exact, 7070, NO_LIMITS) as (one, _), ours(net, packed, 7071, NO_LIMITS) as (two, _):  # fmt: skip
        found = interleaved({"float32": one, "int4": two}, rounds=ROUNDS, tokens=TOKENS)
    ms = {key: value["median"] for key, value in found.items()}
    what = f"ms a token at 4 bit over float32, {title}, 2 ranks, 1 ms / 300 Mbit/s: {ms['int4']:.0f} ms against {ms['float32']:.0f} ms"
    return ms["int4"] / ms["float32"], what


def _kernel_ratio() -> tuple[float | None, str]:
    """Our 4 bit product over ONNX Runtime's fastest (blocks of 128), 8192 x 2048, one token, weights from memory."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, columns, block, copies = 8192, 2048, 128, 12
    random = np.random.default_rng(0)
    x = random.standard_normal((1, columns)).astype(np.float32)
    mine, theirs = [], []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for _ in range(copies):
        data = random.integers(0, 255, lowbit.encoded_bytes("int4", rows * columns), dtype=np.uint8)
        data.reshape(-1, 288)[:, -32:] = np.full(16, 0.01, np.float16).view(np.uint8)
        mine.append(lowbit.Packed(torch.from_numpy(data), rows, columns, "int4", False))
        weights = random.integers(0, 255, (rows, columns // block, block // 2), dtype=np.uint8)
        node = helper.make_node(
            "MatMulNBits", ["x", "B", "S"], ["y"], domain="com.microsoft",
            K=columns, N=rows, bits=4, block_size=block, accuracy_level=4,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, columns])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, rows])],
            [numpy_helper.from_array(weights, "B"), numpy_helper.from_array(np.full(rows * columns // block, 0.01, np.float32), "S")],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
        theirs.append(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    given = torch.from_numpy(x)
    for turn in range(20 * copies):
        began = time.perf_counter()
        kernels.product(given, mine[turn % copies])
        middle = time.perf_counter()
        theirs[turn % copies].run(None, {"x": x})
        taken["ours"].append(middle - began)
        taken["theirs"].append(time.perf_counter() - middle)
    one, two = (1e3 * statistics.median(taken[key]) for key in ("ours", "theirs"))
    what = f"product of a 4 bit matrix 8192 x 2048 with one token, {_kernel_name()}, blocks of 32, over ONNX Runtime {onnxruntime.__version__} MatMulNBits, accuracy level 4, blocks of 128: {one:.2f} ms against {two:.2f} ms"
    return one / two, what


def _kernel_name() -> str:
    profile = kernels.kernel_profile()
    return "torch" if profile is None or profile.int4.chosen == "torch" else f"c, {native.target()}"


def stream_big_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """A model that is larger than memory, read from storage of 200 MB/s for each token."""
    import accelerate

    peer = random_checkpoint("random-1b", STREAMED)
    folder, weights = streamed_shards(peer), "float32"
    table = 4 * STREAMED["vocabulary"] * STREAMED["hidden"]  # the master has two: embedding and lm_head
    layers = sum((folder / f"rank{rank}.bin").stat().st_size for rank in range(2)) - 2 * table
    allowed = int(0.3 * layers / 2)
    limits = [Limits(allowed, allowed, STORAGE_MB_PER_S)] * 2
    evict(peer)
    group = Cgroup("accelerate", memory_bytes=allowed, read_mb_per_s=STORAGE_MB_PER_S, folder=peer)
    try:
        with lab("a", "b") as net, ours(net, folder, 7070, limits) as (full, groups):
            other = Program("Accelerate", group.command(python("accelerate", str(peer))))
            try:
                found = interleaved({"ours": full, "accelerate": other}, rounds=ROUNDS, tokens=1)
            finally:
                other.close()
            peak, killed = max(one.peak_bytes for one in groups), any(one.killed for one in groups)
    finally:
        group.close()
    ratio = _ratio(found, "accelerate", "ours")
    what = f"1.1 B {weights} random Llama, 2 ranks, 1 ms / 300 Mbit/s, each within {allowed / 1e6:.0f} MB (30 % of half of the layers, enforced), storage of 200 MB/s each: Accelerate's time on one such device over ours, {found['accelerate']['median']:.0f} ms against {found['ours']['median']:.0f} ms a token"
    return [
        Measurement(id="stream_big", what=what, value=ratio, unit="x", direction=">=", bar=2.4, peer="Accelerate, disk offload", peer_version=accelerate.__version__),
        Measurement(id="stream_big.peak", what="most that a rank's control group was charged, page cache included", value=None if killed else peak, unit="B", direction="<=", bar=allowed),
    ]  # fmt: skip


def _least(source: Checkpoint) -> list[Limits]:
    """As `_sixty`, or what the published mode takes where that is more: it keeps the embedding and lm_head whole, and is killed below."""
    published = plans(source.config, paper=True)
    sizes = [max(one.promised or 0, plan.total) for one, plan in zip(_sixty(source), published, strict=True)]
    return [Limits(size, None if unavailable() else size) for size in sizes]


def _sixty(source: Checkpoint) -> list[Limits]:
    """60 % of what each rank takes with all weights in memory, promised and enforced."""
    why = unavailable()
    if why is not None:
        print(f"limits are promised, not enforced: {why}", flush=True)
    sizes = [int(0.6 * plan.total) for plan in plans(source.config)]
    return [Limits(size, None if why else size) for size in sizes]


def _limit_words(limits: list[Limits]) -> str:
    enforced = "enforced" if limits[0].enforced else "promised alone"
    return f"limits ({' and '.join(f'{(one.promised or 0) / 1e6:.0f} MB' for one in limits)}, {enforced})"


def _ratio(found: dict[str, dict[str, Any]], one: str, other: str) -> float:
    return float(found[one]["median"] / found[other]["median"])


PARTS = {
    "allreduce": allreduce_rows, "paper_ratio": paper_ratio_rows, "accelerate": accelerate_rows, "one_device": one_device_rows,
    "low_bit": low_bit_rows, "low_bit_big": low_bit_big_rows, "stream_big": stream_big_rows,
}  # fmt: skip
