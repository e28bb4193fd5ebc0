"""`edge-agent llm-worker`: one rank that computes for whatever master comes.

Whatever goes wrong in an epoch, its connections are thrown away; nothing is carried over but weights.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.collectives import Collective, MeshCollective, StarCollective
from orchestrator.tensor_parallel.dial import Listener, dial
from orchestrator.tensor_parallel.errors import PeerError, ShardError
from orchestrator.tensor_parallel.kernels import kernel_profile
from orchestrator.tensor_parallel.memory import forget_code, resident_now, resident_peak
from orchestrator.tensor_parallel.peer_link import Link, move, receive, receive_control, send, send_control
from orchestrator.tensor_parallel.protocol import (
    CHUNK_BYTES,
    CONTROL_LIMIT,
    Assign,
    Connect,
    Hello,
    Kind,
    Measure,
    Need,
    Ready,
    Refused,
    decode_control,
    segments_limit,
    unpack_segments,
)
from orchestrator.tensor_parallel.rank_runner import RankRunner, RankTask
from orchestrator.tensor_parallel.secure import Keys
from orchestrator.tensor_parallel.shard_set import check_index, read_set, verify_file
from orchestrator.tensor_parallel.trace import pack_spans

log = logging.getLogger(__name__)

_TURN_S = 0.5  # how often a waiting worker looks whether it should end
_SILENCE_S = 60.0  # beyond the deadline: a master that sent heartbeats and then nothing for so long is given up


OnChange = Callable[[bool, int, int], None]  # whether it computes, the epoch, bytes of weights in memory


@dataclass(frozen=True)
class WorkerOptions:
    """Where a worker listens and what it may use."""

    host: str
    port: int
    key_file: Path
    store: Path
    memory_limit: int | None = None
    release_s: float = 30.0  # weights are kept so long for a master that comes back
    on_change: OnChange | None = None
    started_bytes: int = 0  # the most that the program took while it started


class Worker:
    """One rank of whatever master comes.

    Raises:
        KeyFileError: The key file cannot be used.
        PeerError: The port is in use.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._keys = Keys(options.key_file)
        self._listener = Listener(options.host, options.port, self._keys)
        self.port = self._listener.port
        kernel_profile()  # a first race takes memory for a moment
        forget_code()
        self._base_bytes = resident_now()
        self._runner: RankRunner | None = None
        self._verified: dict[Path, tuple[int, int]] = {}
        self._waiting: tuple[Link, Hello] | None = None  # a master that came while another one was served
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `run` within half a second."""
        self._stop.set()

    def run(self) -> None:
        """Serve masters, one at a time, until `stop`."""
        idle_s = 0.0
        try:
            while not self._stop.is_set():
                came = self._waiting or self._listener.accept(timeout_s=_TURN_S)
                self._waiting = None
                if came is None:
                    idle_s += _TURN_S
                    if idle_s >= self._options.release_s:
                        self._release()
                    continue
                idle_s = 0.0
                self._serve(*came)
        finally:
            self._release()
            self._listener.close()

    def _serve(self, link: Link, hello: Hello) -> None:
        if hello.rank != 0:
            link.close()  # a peer of an epoch that is over here
            return
        links = {0: link}
        try:
            self._epoch(links)
        except PeerError as error:
            log.warning("epoch %s ended: %s", hello.epoch, error)
        except (EdgeError, OSError) as error:
            log.error("epoch %s refused: %s", hello.epoch, error)
            self._refuse(
                link, error if isinstance(error, EdgeError) else ShardError(f"Wanted its store, found {error}.")
            )
        finally:
            for one in links.values():
                one.close()

    @staticmethod
    def _refuse(link: Link, error: EdgeError) -> None:
        try:
            send_control(link, Refused(kind=type(error).__name__, message=str(error)), timeout_s=3.0)
        except PeerError as left:
            log.warning("could not tell the master: %s", left)

    def _epoch(self, links: dict[int, Link]) -> None:
        master = links[0]
        while isinstance(assign := receive_control(master, timeout_s=10.0), Measure):
            send_control(master, Measure(), timeout_s=10.0)
        if not isinstance(assign, Assign) or not 0 < assign.rank < len(assign.shard_set.nodes):
            raise PeerError(f"Wanted an assignment from {master.peer}, found {type(assign).__name__}.")
        master.own_rank = assign.rank
        check_index(assign.index, assign.rank, assign.shard_set, f"the assignment of {master.peer}")
        runner = self._prepare(assign, self._fetch(master, assign))
        memory = runner.memory
        ready = Ready(resident_bytes=memory.resident, streamed_bytes=memory.streamed, peak_bytes=memory.total)
        send_control(master, ready, timeout_s=assign.settings.deadline_s)
        told = self._wait(master, Kind.CONTROL, CONTROL_LIMIT)  # others may still be fetching their weights
        if not isinstance(decode_control(told, master.peer), Connect):
            raise PeerError(f"Wanted to be told to connect by {master.peer}, found another message.")
        collective = self._connect(links, assign)
        try:
            send_control(master, Ready(), timeout_s=assign.settings.deadline_s)
            self._say(master.epoch, computing=True)
            self._steps(master, runner, collective)
        finally:
            collective.close()
            self._say(master.epoch, computing=False)

    def _fetch(self, master: Link, assign: Assign) -> Path:
        """The rank's file: there already, or fetched from where it stopped, and verified."""
        index, set_id = assign.index, assign.shard_set.set_id
        local = self._options.store / f"rank{assign.rank}.bin"
        if not (local.is_file() and _is_set(self._options.store, set_id)):
            folder = self._options.store / set_id
            folder.mkdir(parents=True, exist_ok=True)
            local = folder / f"rank{assign.rank}.bin"
        timeout_s = max(assign.settings.deadline_s, 10.0)
        if local.is_file():
            self._verify(local, assign)
            send_control(master, Need(offset=index.nbytes), timeout_s=timeout_s)
            return local
        part = local.with_suffix(".part")
        with part.open("ab") as stream:
            whole = min(stream.tell(), index.nbytes) // CHUNK_BYTES * CHUNK_BYTES
            stream.truncate(whole)
            send_control(master, Need(offset=whole), timeout_s=timeout_s)
            begun = whole
            while whole < index.nbytes:
                chunk: bytes | bytearray | memoryview
                if whole == begun:  # other workers are served first, however long that takes
                    chunk = self._wait(master, Kind.WEIGHTS, CHUNK_BYTES)
                else:
                    chunk = receive(master, Kind.WEIGHTS, timeout_s=timeout_s, limit=CHUNK_BYTES)
                if len(chunk) != min(CHUNK_BYTES, index.nbytes - whole):
                    raise PeerError(f"Wanted the next chunk of weights from {master.peer}, found {len(chunk)} B.")
                whole += stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            self._verify(part, assign)
        except ShardError:
            part.unlink()
            raise
        part.replace(local)
        return local

    def _verify(self, path: Path, assign: Assign) -> None:
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns)
        if self._verified.get(path) != state:
            verify_file(path, assign.index)
        self._verified[path] = self._verified[path.with_suffix(".bin")] = state

    def _prepare(self, assign: Assign, file: Path) -> RankRunner:
        limits = [limit for limit in (assign.memory_limit, self._options.memory_limit) if limit is not None]
        task = RankTask(
            assign.shard_set, file, assign.rank, assign.members, assign.settings, min(limits) if limits else None
        )
        if self._runner is not None and not self._runner.window.failed and self._runner.task.same_weights(task):
            self._runner.follow(task)
        else:
            self._release()
            self._runner = RankRunner(task, base_bytes=self._base_bytes, started_bytes=self._options.started_bytes)
        return self._runner

    def _connect(self, links: dict[int, Link], assign: Assign) -> Collective:
        settings, timeout_s = assign.settings, assign.settings.deadline_s
        if settings.collective == "gloo":
            from orchestrator.tensor_parallel.gloo_collective import GlooCollective

            place = sorted(member.rank for member in assign.members).index(assign.rank)
            host = next(member.host for member in assign.members if member.rank == 0)
            return GlooCollective(place, len(assign.members), (host, settings.gloo_port), timeout_s=timeout_s)
        if settings.collective in ("star", "paper"):
            return StarCollective(assign.rank, links, timeout_s=timeout_s, payload=settings.payload)
        hello = Hello(rank=assign.rank, epoch=links[0].epoch)
        others = [member for member in assign.members if member.rank not in (0, assign.rank)]
        for member in sorted(others, key=lambda one: one.rank):
            if member.rank < assign.rank:
                address = (member.host, member.port)
                links[member.rank] = dial(address, self._keys, hello, peer=member.name, timeout_s=timeout_s)
        self._accept_peers(links, {member.rank: member.name for member in others}, timeout_s)
        return MeshCollective(assign.rank, links, timeout_s=timeout_s, payload=settings.payload)

    def _accept_peers(self, links: dict[int, Link], names: dict[int, str], timeout_s: float) -> None:
        """Wait for the higher ranks of this epoch; whoever else comes is dropped."""
        epoch, own = links[0].epoch, links[0].own_rank
        turns = max(1, int(timeout_s / 0.1))
        while missing := [name for rank, name in names.items() if rank not in links]:
            came = self._listener.accept(timeout_s=0.1)
            if came is not None:
                link, hello = came
                if hello.epoch == epoch and hello.rank in names and hello.rank not in links:
                    link.peer, link.own_rank = names[hello.rank], own
                    links[hello.rank] = link
                    continue
                link.close()
            turns -= 1
            if turns <= 0:
                raise PeerError(f"Wanted {', '.join(missing)} to connect within {timeout_s} s, found none.")

    def _steps(self, master: Link, runner: RankRunner, collective: Collective) -> None:
        """Compute step after step; ends with a PeerError when the master leaves."""
        settings, hidden = runner.task.settings, runner.config.hidden
        limit = segments_limit(settings.slots) + 4 * settings.step_tokens * hidden
        patience_s = None
        while True:
            body = self._wait(master, Kind.STEP, limit, newer=True, patience_s=patience_s)
            if master.asked is not None:
                if master.asked is Kind.PROBE:
                    patience_s = _SILENCE_S + settings.deadline_s
                answer = pack_spans(runner.recorder.spans()) if master.asked is Kind.TRACE else b""
                send(master, master.asked, answer, timeout_s=settings.deadline_s)
                continue
            segments, used = unpack_segments(body, slots=settings.slots, context=settings.context, peer=master.peer)
            count = sum(segment.count for segment in segments)
            if len(body) - used != 4 * count * hidden or count > settings.step_tokens:
                raise PeerError(f"Wanted {count} embeddings from {master.peer}, found {len(body) - used} B.")
            x: Any = torch.frombuffer(body, dtype=torch.float32, offset=used).view(count, hidden)
            with torch.inference_mode():
                runner.forward(x, segments, collective)
            log.debug("step of %d tokens, peak %d MB", count, resident_peak() >> 20)

    def _wait(
        self, master: Link, kind: Kind, limit: int, *, newer: bool = False, patience_s: float | None = None
    ) -> bytearray:
        """Wait for the master; also look for the order to end and, between steps, for another master."""
        end = None if patience_s is None else time.monotonic() + patience_s
        master.begin_receive(kind, sequence=None, limit=limit, or_probe=newer)
        poll = select.poll()
        poll.register(master.fileno(), select.POLLIN)
        if newer:  # before Connect, whoever dials is a peer of this epoch and stays in the queue
            poll.register(self._listener.fileno(), select.POLLIN)
        while not master.fill():
            if master.is_receiving:
                move([], [master], timeout_s=10.0)
                break
            if any(descriptor == self._listener.fileno() for descriptor, _ in poll.poll(_TURN_S * 1000)):
                self._look_for_newer_master(master)
            if self._stop.is_set():
                raise PeerError("Wanted the next message, found that this worker should end.")
            if end is not None and time.monotonic() > end:
                raise PeerError(f"Wanted a step or a heartbeat of {master.peer} within {patience_s:g} s, found none.")
        return master.taken()

    def _look_for_newer_master(self, master: Link) -> None:
        came = self._listener.accept(timeout_s=0.0)
        if came is None:
            return
        if came[1].rank == 0:
            self._waiting = came
            raise PeerError(f"Wanted the next step from {master.peer}, found a newer master at {came[0].peer}.")
        came[0].close()

    def _release(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
            self._say(0, computing=False)

    def _say(self, epoch: int, *, computing: bool) -> None:
        if self._options.on_change is not None:
            resident = 0 if self._runner is None else self._runner.memory.resident
            self._options.on_change(computing, epoch, resident)


def _is_set(folder: Path, set_id: str) -> bool:
    try:
        return read_set(folder).set_id == set_id
    except EdgeError:
        return False
