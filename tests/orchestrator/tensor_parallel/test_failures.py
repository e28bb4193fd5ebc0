"""Workers and masters that are killed, stopped, started again, or run out of memory: real processes, the same text."""

import contextlib
import json
import os
import re
import signal
import socket
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from orchestrator.demo.processes import ChildError, Children, edge_agent, headtail
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from tests.orchestrator.tensor_parallel.conftest import make_tiny, wait_until

PROMPT = "Once upon a time"
TOKENS = 40


@dataclass
class House:
    """A master and two workers, as processes."""

    children: Children
    folder: Path
    key: Path
    ports: dict[str, int]

    def start_worker(self, name: str, *options: str) -> None:
        command = edge_agent(
            "llm-worker", "--listen", f"127.0.0.1:{self.ports[name]}", "--key", str(self.key),
            "--store", str(self.folder / name), "--threads", "1", "--release-s", "0.5", *options,
        )  # fmt: skip
        self.children.start(name, command, ready="listens on")

    def ensure_workers(self) -> None:
        for name in self.ports:
            with contextlib.suppress(StopIteration):
                self.children.pid(name)
                continue
            self.start_worker(name)

    def start_server(self, *options: str, limits: dict[str, str] | None = None) -> str:
        tables = ['[[node]]\nname = "host"\n'] + [
            f'[[node]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\n'
            + (f'memory_limit = "{(limits or {})[name]}"\n' if name in (limits or {}) else "")
            for name, port in self.ports.items()
        ]
        (self.folder / "nodes.toml").write_text("".join(tables))
        command = headtail(
            "llm", "serve", str(self.folder / "shards"), "--nodes", str(self.folder / "nodes.toml"),
            "--key", str(self.key), "--port", "0", "--threads", "1", "--deadline-s", "2", "--lookup", "0", *options,
        )  # fmt: skip
        line = self.children.start("server", command, ready="serving ")
        match = re.search(r"http://\S+", line)
        assert match is not None
        return match.group()

    def alive(self, url: str) -> list[bool]:
        try:
            answer = urllib.request.urlopen(url.removesuffix("/v1") + "/health")
        except urllib.error.HTTPError as error:
            answer = error
        return [node["alive"] for node in json.loads(answer.read())["nodes"]]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A model whose weights and caches are seen in a process's memory."""
    return make_tiny(
        "llama", tmp_path_factory.mktemp("larger"), hidden_size=128, intermediate_size=8192, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory, key_file, larger):
    tmp_path = tmp_path_factory.mktemp("house")
    ports = dict(zip(("w0", "w1"), free_ports(2), strict=True))
    nodes = [Node(name="host"), *(Node(name=name, address=f"127.0.0.1:{port}") for name, port in ports.items())]
    shard_checkpoint(open_checkpoint(larger.folder), nodes, tmp_path / "shards", spares=1)
    with Children(tmp_path / "logs") as children:
        yield House(children, tmp_path, key_file, ports)


@pytest.fixture
def house(built):
    built.ensure_workers()
    yield built
    built.children.stop("server")


def ask(url: str, after: int = 0, disturb=None) -> str:
    """The whole text of a streamed answer; `disturb` is called after so many pieces."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    pieces = []
    stream = client.completions.create(
        model="m", prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    for chunk in stream:
        pieces.append(chunk.choices[0].text)
        if len(pieces) == after and disturb is not None:
            disturb()
    return "".join(pieces)


def test_a_stream_goes_on_over_the_survivors_and_who_returns_joins_at_the_next_request(house):
    url = house.start_server()
    wanted = ask(url)
    assert house.alive(url) == [True, True, True]
    assert ask(url, 5, lambda: house.children.stop("w0", kill=True)) == wanted
    assert house.alive(url) == [True, False, True]
    house.start_worker("w0")
    assert ask(url) == wanted
    assert house.alive(url) == [True, True, True]
    stopped = house.children.pid("w1")
    assert ask(url, 5, lambda: os.killpg(stopped, signal.SIGSTOP)) == wanted  # silent, not gone: the deadline ends it
    assert house.alive(url) == [True, True, False]
    os.killpg(stopped, signal.SIGCONT)
    assert ask(url) == wanted
    assert house.alive(url) == [True, True, True]
    house.children.stop("w0", kill=True)
    house.children.stop("w1", kill=True)
    with pytest.raises(openai.APIError, match="w0 or w1 again"):
        ask(url)
    house.start_worker("w0")
    assert ask(url) == wanted


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_mb(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1e3


def test_workers_of_a_killed_master_free_their_memory_wait_quietly_and_take_the_next_one(house):
    workers = [house.children.pid(name) for name in house.ports]
    url = house.start_server()
    wanted = ask(url)
    busy = [resident_mb(pid) for pid in workers]
    assert ask(url, 5, lambda: None) == wanted
    with contextlib.suppress(openai.APIError, httpx.HTTPError):
        ask(url, 5, lambda: house.children.stop("server", kill=True))
    for pid, before in zip(workers, busy, strict=True):
        wait_until(lambda pid=pid, before=before: resident_mb(pid) < before - 12)  # 17 MB of weights each
    before, began = [cpu_ticks(pid) for pid in workers], time.monotonic()
    wait_until(lambda: time.monotonic() > began + 1.5)
    spent = [cpu_ticks(pid) - ticks for pid, ticks in zip(workers, before, strict=True)]
    assert max(spent) <= 10  # of 150: nobody spins
    assert ask(house.start_server()) == wanted


def test_survivors_without_the_memory_are_named_to_the_client(house):
    with pytest.raises(ChildError, match="memory-limit"):
        house.start_server(limits={"w1": "1MB"})
    log = (house.folder / "logs" / "server.log").read_text()
    enough = int(re.search(r"Give --memory-limit (\d+)MB", log)[1])
    url = house.start_server(limits={"w1": f"{enough}MB"})
    wanted = ask(url)
    with pytest.raises(openai.APIError, match=r"w1: Wanted to stay within \d+ MB, found that \d+ MB are needed"):
        ask(url, 5, lambda: house.children.stop("w0", kill=True))
    house.start_worker("w0")
    assert ask(url) == wanted
