"""One rank's part of a step: its blocks in order, a sum over all ranks behind each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.tensor_parallel.blocks import Rotary, attention, feed_forward, project, rms_norm
from orchestrator.tensor_parallel.buffers import Buffer, WeightFile
from orchestrator.tensor_parallel.collectives import Collective
from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import PromptError, ShardError
from orchestrator.tensor_parallel.kernels import mix
from orchestrator.tensor_parallel.kv_cache import KvCache
from orchestrator.tensor_parallel.loads import RankLoads, rank_loads
from orchestrator.tensor_parallel.lowbit import TILE_ROWS, unpack
from orchestrator.tensor_parallel.memory import MemoryPlan, plan_memory
from orchestrator.tensor_parallel.partition import Share
from orchestrator.tensor_parallel.protocol import Member, RunSettings, Segment
from orchestrator.tensor_parallel.shard_set import ShardSet
from orchestrator.tensor_parallel.trace import Recorder
from orchestrator.tensor_parallel.window import Window

Tensor = Any  # torch is untyped here


@dataclass(frozen=True)
class RankTask:
    """Everything that decides what a rank loads and computes; equal tasks can share a runner."""

    shard_set: ShardSet
    file: Path
    rank: int
    members: tuple[Member, ...]
    settings: RunSettings
    memory_limit: int | None = None

    @property
    def share(self) -> Share:
        """What this rank computes."""
        return next(member.share for member in self.members if member.rank == self.rank)

    @property
    def loads(self) -> RankLoads:
        """What this rank reads."""
        held = self.shard_set.nodes[self.rank].held
        master = self.rank == 0
        return rank_loads(self.shard_set.config, held, self.share, master=master, paper=self.settings.paper)

    def same_weights(self, other: "RankTask") -> bool:
        """Whether a runner of the other task can go on as one of this."""
        return (self.shard_set, self.file, self.rank, self.share, self.memory_limit, len(self.members)) == (
            other.shard_set, other.file, other.rank, other.share, other.memory_limit, len(other.members)
        ) and _loading(self.settings) == _loading(other.settings)  # fmt: skip


def _loading(settings: RunSettings) -> tuple[object, ...]:
    cache = (settings.context, settings.slots, settings.kv_cache, settings.guessed)
    return (settings.paper, settings.window, settings.step_tokens, *cache)


class RankRunner:
    """Weights, cache and blocks of one rank.

    Args:
        task: What to load.
        base_bytes: Memory of the program before any weights.
        started_bytes: The most that it took while it started.

    Raises:
        MemoryLimitError: The limit cannot be kept.
        ShardError: The share is not in the file, or the file cannot be read.
    """

    def __init__(self, task: RankTask, *, base_bytes: int, started_bytes: int = 0) -> None:
        self.task = task
        self.config: ModelConfig = task.shard_set.config
        if not task.shard_set.nodes[task.rank].held.covers(task.share):
            raise ShardError(f"Rank {task.rank} does not hold {task.share}. Shard again with more --spares.")
        if task.settings.paper and self.config.weights != "float32":
            raise ShardError(f"Wanted float32 weights for the paper's mode, found {self.config.weights}. Shard again.")
        self._loads = task.loads
        self.memory: MemoryPlan = plan_memory(
            self.config,
            task.share,
            self._loads,
            task.settings,
            ranks=len(task.members),
            master=task.rank == 0,
            limit=task.memory_limit,
            base=base_bytes,
            started=started_bytes,
        )
        self._file = WeightFile(task.file, drop_behind=task.memory_limit is not None and not task.settings.paper)
        self._norm = self._load_norm()
        self.recorder = Recorder()
        self.window = Window(
            self._file, self._loads.cycle, self.memory.kept, size=task.settings.window, recorder=self.recorder
        )
        settings = task.settings
        self._cache = KvCache(
            self.config, task.share.kv_heads, slots=settings.slots, context=settings.context, kind=settings.kv_cache
        )
        self._rotary = Rotary(self.config)
        self._with_heads = [member.rank for member in task.members if member.share.kv_heads]
        self._with_columns = [member.rank for member in task.members if member.share.columns]
        self._position = 0
        self.communicated_s = 0.0

    def close(self) -> None:
        """Give all memory back."""
        self.window.close()
        self._cache = KvCache(self.config, 0, slots=1, context=1)

    def follow(self, task: RankTask) -> None:
        """Go on with the same weights in another epoch."""
        self.task = task
        self._with_heads = [member.rank for member in task.members if member.share.kv_heads]
        self._with_columns = [member.rank for member in task.members if member.share.columns]
        self.window.rewind()

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Embedding rows of a step's tokens, (n, H); the step's first call on the master.

        Raises:
            PromptError: A token that the vocabulary does not have.
        """
        wrong = [token for token in tokens if not 0 <= token < self.config.vocabulary]
        if wrong:
            raise PromptError(f"Wanted tokens below {self.config.vocabulary}, found {wrong[0]}.")
        self._position = 0
        self.recorder.begin()
        if self.task.settings.paper:
            with self.window.take(0) as weights:
                rows = weights["rows"][list(tokens)]
            self._position = 1
        else:
            rows = self._table_rows(tokens)
        return rows * self.config.embedding_scale if self.config.embedding_scale != 1.0 else rows

    def forward(self, x: Tensor, segments: Sequence[Segment], collective: Collective) -> Tensor | None:
        """All layers.

        Args:
            x: Embeddings, (n, H), the same on every rank.
            segments: Whose tokens they are, in this order.
            collective: Sums over ranks.

        Returns:
            The residual behind the last layer on the master, null on workers.

        Raises:
            PeerError: A rank is lost.
            ShardError: Weights cannot be read.
        """
        if self.task.rank:
            self._position = 0
            self.recorder.begin()
        context = (segments, self._rotary.table(segments))
        config, shape = self.config, (x.shape[0], x.shape[1])
        for layer in range(config.layers):
            partial = None
            if self.task.share.kv_heads:
                partial = self._attention(x, layer, context)
            x = x + self._timed(collective.allreduce, partial, self._with_heads, shape)
            partial = None
            if self.task.share.columns:
                partial = self._feed_forward(x, layer)
            last = layer == config.layers - 1
            total = self._timed(collective.reduce if last else collective.allreduce, partial, self._with_columns, shape)
            if total is None:
                return None
            x = x + total
        return x

    def _attention(self, x: Tensor, layer: int, context: tuple[Sequence[Segment], Any]) -> Tensor:
        """Partial sum of a layer's attention, (n, H); o comes with the rest, or as a load of its own."""
        with self._next() as weights, self.recorder.doing("compute", f"attention.{layer}"):
            seen = attention(x, weights, self.config, (self._cache, layer), context)
            if "o" in weights:
                return mix(seen, weights["o"])  # (n, k g d) @ (k g d, H)
        with self._next() as weights, self.recorder.doing("compute", f"attention.{layer}"):
            return mix(seen, weights["o"])

    def _feed_forward(self, x: Tensor, layer: int) -> Tensor:
        """Partial sum of a layer's FFN, (n, H), piece by piece."""
        total = h = None
        for _ in range(self._loads.ffn_pieces):
            with self._next() as weights, self.recorder.doing("compute", f"ffn.{layer}"):
                h = rms_norm(x, weights["ffn_norm"], self.config) if h is None else h
                piece = feed_forward(h, weights, self.config)
                total = piece if total is None else total + piece
        return total

    def logits(self, x: Tensor) -> Tensor:
        """Logits of rows of the residual, (r, vocabulary); the head is read chunk by chunk. The step's last call."""
        rows = rms_norm(x, self._norm, self.config)
        out = torch.empty((x.shape[0], self.config.vocabulary))
        for first, stop in self._loads.head_chunks:
            with self._next() as weights, self.recorder.doing("compute", f"head.{first}"):
                if x.shape[0]:
                    out[:, first:stop] = project(rows, weights["rows"])
        return out

    def _table_rows(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding, read singly; of a packed one the tiles that have them."""
        assert self._loads.table is not None  # the master's
        (part, offset), hidden = self._loads.table, self.config.hidden
        unit = 1 if part.encoding == "float32" else TILE_ROWS
        nbytes = part.bytes_of(unit)
        buffer = Buffer(nbytes)
        rows = torch.empty((len(tokens), hidden))
        for place, token in enumerate(tokens):
            self._file.read(offset + token // unit * nbytes, buffer.view)
            if part.encoding == "float32":
                rows[place] = buffer.tensor(0, (hidden,))
                continue
            tile = np.frombuffer(buffer.view, np.uint8)
            rows[place] = torch.from_numpy(unpack(tile, (unit, hidden), part.encoding, by_column=False)[token % unit])
        return rows

    def _next(self) -> Any:  # noqa: ANN401 - a context manager over tensors
        self._position += 1
        return self.window.take(self._position - 1)

    def _timed(self, operation: Any, *arguments: Any) -> Tensor | None:  # noqa: ANN401
        began = time.perf_counter()
        total = operation(*arguments)
        ended = time.perf_counter()
        self.communicated_s += ended - began
        self.recorder.add("communicate", "sum", began, ended)
        return total

    def _load_norm(self) -> Tensor | None:
        load = self._loads.norm
        if load is None:
            return None
        buffer = Buffer(load.nbytes)
        self._file.read(load.reads[0][0], buffer.view)
        return buffer.tensor(0, load.views[0].shape)
