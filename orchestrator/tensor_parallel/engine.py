"""The master's engine: tokens in, logits out, over whatever ranks there are. It begins again when one is lost."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.tensor_parallel.cluster import Cluster, Epoch, Progress
from orchestrator.tensor_parallel.control import Directory
from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.kernels import kernel_profile
from orchestrator.tensor_parallel.memory import forget_code, resident_now
from orchestrator.tensor_parallel.nodes import Node, parse_size
from orchestrator.tensor_parallel.peer_link import move, receive, send
from orchestrator.tensor_parallel.protocol import Kind, RunSettings, Segment, pack_segments
from orchestrator.tensor_parallel.rank_runner import RankRunner, RankTask
from orchestrator.tensor_parallel.secure import Keys
from orchestrator.tensor_parallel.trace import LIMIT_BYTES, Span, unpack_spans

log = logging.getLogger(__name__)

Tensor = Any  # torch is untyped here


@dataclass(frozen=True)
class EngineOptions:
    """What to serve and how."""

    shards: Path
    nodes: tuple[Node, ...]
    key_file: Path | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    allow_missing: bool = False  # start with the nodes that answer
    directory: Directory | None = None  # where nodes announce themselves
    started_bytes: int = 0  # the most that the program took while it started


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence for a step: they take places start.. of the slot. The rest is as in `Segment`."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    wanted: int  # logits of the last so many
    branches: int = 1
    depth: int = 0
    moved_from: int = 0
    moved: int = 0

    @property
    def segment(self) -> Segment:
        """What the ranks are told."""
        return Segment(self.slot, self.start, len(self.tokens), self.branches, self.depth, self.moved_from, self.moved)


@dataclass
class StepTimes:
    """Seconds of the last step."""

    total_s: float = 0.0
    communicated_s: float = 0.0
    waited_s: float = 0.0


class Engine:
    """Runs steps over the cluster. Not for use by two threads at once.

    Raises:
        EdgeError: As `Cluster` and `RankRunner`.
    """

    def __init__(self, options: EngineOptions, *, progress: Progress | None = None) -> None:
        kernel_profile()  # a first race takes memory for a moment
        forget_code()
        self._base_bytes, self._started_bytes = resident_now(), options.started_bytes
        self.settings = options.settings
        keys = None if options.key_file is None or len(options.nodes) == 1 else Keys(options.key_file)
        self.cluster = Cluster(
            options.shards,
            options.nodes,
            keys,
            options.settings,
            progress=progress,
            locate=None if options.directory is None else options.directory.locate,
        )
        self.config = self.cluster.shard_set.config
        self._directory = options.directory
        self.times = StepTimes()
        self.restarts = 0
        self._runner: RankRunner | None = None
        self._epoch: Epoch | None = None
        self._begin(require_all=not options.allow_missing)

    @property
    def epoch(self) -> Epoch:
        """The epoch that runs."""
        assert self._epoch is not None
        return self._epoch

    @property
    def runner(self) -> RankRunner:
        """The master's own rank."""
        assert self._runner is not None
        return self._runner

    def step(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Run tokens of one or more sequences through the model.

        Args:
            pieces: Distinct slots; together at most `settings.step_tokens` tokens.

        Returns:
            For each piece the logits of its last `wanted` tokens, (wanted, vocabulary).

        Raises:
            PeerError: A rank is lost: `restart`, then every cache is empty.
        """
        began = time.perf_counter()
        runner, waited, communicated = self.runner, self.runner.window.times.wait_s, self.runner.communicated_s
        segments = tuple(piece.segment for piece in pieces)
        with torch.inference_mode():
            x = runner.embed([token for piece in pieces for token in piece.tokens])
            self._send_step(segments, x)
            x = runner.forward(x, segments, self.epoch.collective)
            rows, first = [], 0
            for piece in pieces:
                first += len(piece.tokens)
                rows += list(range(first - piece.wanted, first))
            assert x is not None  # the master is rank 0
            logits = runner.logits(x[rows])
        out, first = [], 0
        for piece in pieces:
            out.append(logits[first : first + piece.wanted])
            first += piece.wanted
        self.times = StepTimes(
            time.perf_counter() - began,
            runner.communicated_s - communicated,
            runner.window.times.wait_s - waited,
        )
        return out

    def restart(self) -> None:
        """Throw the epoch away and begin another with the nodes that answer. Caches are empty then.

        Raises:
            NodesLostError: Those that are left do not hold the model.
            EdgeError: As `Cluster.begin`.
        """
        self.restarts += 1
        self._end_epoch()
        self._begin()

    def trace(self) -> dict[str, tuple[Span, ...]]:
        """What each rank did in the last step, by name, the master first.

        Raises:
            PeerError: A worker left.
        """
        names = {member.rank: member.name for member in self.epoch.members}
        found = {names[0]: self.runner.recorder.spans()}
        for rank, link in self.epoch.links.items():
            send(link, Kind.TRACE, b"", timeout_s=self.settings.deadline_s)
            answer = receive(link, Kind.TRACE, timeout_s=self.settings.deadline_s, limit=LIMIT_BYTES)
            found[names[rank]] = unpack_spans(answer, link.peer)
        return found

    def doing(self) -> dict[int, dict[str, int]]:
        """What each rank of the epoch holds, and what it reads for each token."""
        epoch, runner = self._epoch, self._runner
        if epoch is None or runner is None:
            return {}
        memory = runner.memory
        known = {0: (memory.total, memory.streamed)} | {
            rank: (ready.peak_bytes, ready.streamed_bytes) for rank, ready in epoch.ready.items()
        }
        return {
            member.rank: {
                "kv_heads": member.share.kv_heads,
                "columns": member.share.columns,
                "memory_bytes": known[member.rank][0],
                "streamed_bytes": known[member.rank][1],
            }
            for member in epoch.members
            if member.rank in known
        }

    @property
    def running(self) -> bool:
        """Whether there is an epoch."""
        return self._epoch is not None

    def check(self) -> None:
        """See between steps that every worker is there; when one is not, the epoch ends (`restart` begins another).

        Raises:
            PeerError: The first that does not answer.
        """
        if self._epoch is None:
            return
        links = self._epoch.links
        try:
            for rank, link in links.items():
                link.begin_receive(Kind.PROBE, sequence=None, limit=0)
                try:
                    send(link, Kind.PROBE, b"", timeout_s=self.settings.deadline_s)
                    move([], [link], timeout_s=self.settings.deadline_s)
                except PeerError:
                    self.cluster.alive.discard(rank)
                    raise
        except PeerError:
            self._end_epoch()
            raise

    def close(self) -> None:
        """Leave the cluster and give memory back."""
        self._end_epoch()
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _begin(self, *, require_all: bool = False) -> None:
        epoch = self.cluster.begin(require_all=require_all)
        try:
            node = self.cluster.nodes[0]
            task = RankTask(
                self.cluster.shard_set,
                self.cluster.folder / "rank0.bin",
                0,
                epoch.members,
                self.settings,
                None if node.memory_limit is None else parse_size(node.memory_limit),
            )
            if self._runner is not None and not self._runner.window.failed and self._runner.task.same_weights(task):
                self._runner.follow(task)
            else:
                if self._runner is not None:
                    self._runner.close()
                    self._runner = None
                self._runner = RankRunner(task, base_bytes=self._base_bytes, started_bytes=self._started_bytes)
        except BaseException:
            epoch.close()
            raise
        self._epoch = epoch
        names = ", ".join(member.name for member in epoch.members)
        log.info("epoch %d: %s", epoch.number, names)
        if self._directory is not None:
            shards = self.cluster.shard_set
            self._directory.say_plan(shards.model, shards.set_id, epoch.number, epoch.members)

    def _end_epoch(self) -> None:
        if self._epoch is not None:
            self._epoch.close()
            self._epoch = None

    def _send_step(self, segments: tuple[Segment, ...], x: Tensor) -> None:
        if self._epoch is None:
            raise PeerError("Wanted a running cluster, found none: restart it.")
        links = list(self._epoch.links.values())
        payload = pack_segments(segments) + np.ascontiguousarray(x.numpy()).tobytes()
        for link in links:
            link.begin_send(Kind.STEP, payload)
        move(links, [], timeout_s=self.settings.deadline_s)
