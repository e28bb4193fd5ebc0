"""Programs that bench_llm starts and times: each answers every line of its input with a line of JSON.

    python -m benchmarks.llm_programs ours SPEC       a master over the nodes of SPEC
    python -m benchmarks.llm_programs transformers FOLDER | accelerate FOLDER        the same model in one process
    python -m benchmarks.llm_programs allreduce SPEC  one rank of a sum over several hosts

The first line out is {"ready": true}. A line `N` in asks for N more greedy tokens behind a fixed prompt; the answer has their
milliseconds, one each, and the process's peak memory.
"""

import importlib.util
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from orchestrator.tensor_parallel.kernels import kernel_profile
from orchestrator.tensor_parallel.memory import resident_peak

PROMPT = tuple(range(40, 56))


class OursSpec(msgspec.Struct, frozen=True):
    """What a master runs."""

    shards: str
    key: str
    workers: tuple[str, ...]  # addresses
    settings: dict[str, Any]
    limits: tuple[str | None, ...]  # of the master and of each worker
    address: str = "127.0.0.1"  # own, as workers see it


class AllreduceSpec(msgspec.Struct, frozen=True):
    """One rank of a sum."""

    rank: int
    addresses: tuple[str, ...]
    key: str
    values: int
    count: int


def main() -> None:
    """Run one of them."""
    torch.set_num_threads(1)
    program, argument = sys.argv[1:]
    if program == "allreduce":
        _allreduce(msgspec.json.decode(argument, type=AllreduceSpec))
        return
    tokens = _ours(msgspec.json.decode(argument, type=OursSpec)) if program == "ours" else _single(program, argument)
    say({"ready": True})
    _serve(tokens)


def _serve(tokens: Callable[[int], list[int]]) -> None:
    started, text = False, list(PROMPT)
    for line in sys.stdin:
        if not started:
            text, started = [*PROMPT, *tokens(-1)], True  # the prompt is not timed
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            text += tokens(text[-1])
            times.append(1e3 * (time.perf_counter() - began))
        say({"ms": times, "tokens": text[len(PROMPT) :], "peak": resident_peak()})


def _ours(spec: OursSpec) -> Callable[[int], list[int]]:
    from orchestrator.tensor_parallel.engine import Engine, EngineOptions, Piece
    from orchestrator.tensor_parallel.nodes import Node
    from orchestrator.tensor_parallel.protocol import RunSettings

    addresses = (f"{spec.address}:1", *spec.workers)
    nodes = tuple(
        Node(name=f"n{rank}", address=address, memory_limit=limit)
        for rank, (address, limit) in enumerate(zip(addresses, spec.limits, strict=True))
    )
    kernel_profile()
    options = EngineOptions(
        Path(spec.shards), nodes, Path(spec.key), RunSettings(**spec.settings), started_bytes=resident_peak()
    )
    engine = Engine(options)
    place = 0

    def step(token: int) -> list[int]:
        nonlocal place
        given = PROMPT if token < 0 else (token,)
        logits = engine.step([Piece(0, place, given, 1)])[0]
        place += len(given)
        return [int(logits[0].argmax())]

    return step


def _single(program: str, folder: str) -> Callable[[int], list[int]]:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if program == "accelerate":
        layers = json.loads((Path(folder) / "config.json").read_text())["num_hidden_layers"]
        names = ("model.embed_tokens", *(f"model.layers.{i}" for i in range(layers)), "model.norm", "lm_head")
        on_disk = {name: "disk" for name in (*names, "model.rotary_emb")}
        options = {"device_map": on_disk | {"model.rotary_emb": "cpu"}, "offload_folder": str(Path(folder) / "offload")}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    past: Any = None

    def step(token: int) -> list[int]:
        nonlocal past
        given = PROMPT if token < 0 else (token,)
        with torch.inference_mode():
            answer = model(torch.tensor([given]), past_key_values=past, use_cache=True, logits_to_keep=1)
        past = answer.past_key_values
        return [int(answer.logits[0, -1].argmax())]

    return step


class _PlainSocket:
    """A socket that says "not now" as TLS does, so that `Link` runs over it unencrypted."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.setblocking, self.fileno, self.close = raw.setblocking, raw.fileno, raw.close

    def send(self, data: memoryview) -> int:
        try:
            return int(self._raw.send(data))
        except BlockingIOError as error:
            raise ssl.SSLWantWriteError from error

    def recv_into(self, into: memoryview) -> int:
        try:
            return int(self._raw.recv_into(into))
        except BlockingIOError as error:
            raise ssl.SSLWantReadError from error


def _allreduce(spec: AllreduceSpec) -> None:
    """Answer `KIND` with the mean milliseconds of `count` sums."""
    methods = dict(_methods(spec))
    say({"ready": True})
    partial, senders = torch.full((1, spec.values), float(spec.rank)), list(range(len(spec.addresses)))
    shape = (1, spec.values)
    for line in sys.stdin:
        method = methods[line.strip()]
        total = method.allreduce(partial, senders, shape)
        assert float(total[0, 0]) == sum(senders)
        began = time.perf_counter()
        for _ in range(spec.count):
            method.allreduce(partial, senders, shape)
        say({"ms": 1e3 * (time.perf_counter() - began) / spec.count})


def _methods(spec: AllreduceSpec) -> Iterator[tuple[str, Any]]:
    from orchestrator.tensor_parallel.collectives import MeshCollective, StarCollective
    from orchestrator.tensor_parallel.gloo_collective import GlooCollective

    secured = links_between(spec, 7100, plain=False)
    yield "mesh", MeshCollective(spec.rank, secured, timeout_s=30)
    yield "plain", MeshCollective(spec.rank, links_between(spec, 7101, plain=True), timeout_s=30)
    star = links_between(spec, 7102, plain=False)
    yield "star", StarCollective(spec.rank, star if spec.rank == 0 else {0: star[0]}, timeout_s=30)
    if importlib.util.find_spec("zmq") is not None:
        from benchmarks.curve_mesh import CurveMesh

        yield "curve", CurveMesh(spec.rank, spec.addresses, Path(spec.key))
    yield "gloo", GlooCollective(spec.rank, len(spec.addresses), (spec.addresses[0], 7103), timeout_s=60)


def links_between(spec: AllreduceSpec, port: int, *, plain: bool) -> dict[int, Any]:
    """A connection to every other rank: the higher one dials."""
    import socket

    from orchestrator.tensor_parallel.peer_link import Link
    from orchestrator.tensor_parallel.secure import Keys, tune

    keys, links = Keys(Path(spec.key)), {}
    listener = socket.create_server((spec.addresses[spec.rank], port), backlog=16)
    for rank in range(spec.rank):
        raw = _dialled((spec.addresses[rank], port))
        tune(raw)
        raw.sendall(bytes([spec.rank]))
        secured: Any = _PlainSocket(raw) if plain else keys.connect(raw, f"n{rank}", timeout_s=10)
        links[rank] = Link(secured, f"n{rank}", own_rank=spec.rank, epoch=1)
    for _ in range(spec.rank + 1, len(spec.addresses)):
        raw, _ = listener.accept()
        tune(raw)
        rank = raw.recv(1)[0]
        secured = _PlainSocket(raw) if plain else keys.accept(raw, f"n{rank}", timeout_s=10)
        links[rank] = Link(secured, f"n{rank}", own_rank=spec.rank, epoch=1)
    return links


def _dialled(address: tuple[str, int]) -> Any:
    import socket

    end = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(address, timeout=10)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def say(values: dict[str, Any]) -> None:
    """Answer with one line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
