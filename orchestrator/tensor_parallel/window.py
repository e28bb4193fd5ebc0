"""The sliding window over a rank's weights: a thread loads the next blocks while this one is computed.

After TPI-LLM (arXiv:2410.00531, section 3.3), with what its code lacks: blocks stay where memory permits, buffers are
reused, and a failed read reaches whoever waits for it.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.buffers import Buffer, WeightFile
from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.loads import Load, View
from orchestrator.tensor_parallel.trace import Recorder

Tensors = dict[str, Any]


@dataclass
class LoadTimes:
    """Seconds since the last `reset`: reading, and computing's wait for it."""

    load_s: float = 0.0
    wait_s: float = 0.0
    loaded_bytes: int = 0

    def reset(self) -> None:
        """Begin again."""
        self.load_s = self.wait_s = 0.0
        self.loaded_bytes = 0


@dataclass
class _Slot:
    buffer: Buffer
    index: int = -1
    tensors: Tensors = field(default_factory=dict)


class Window:
    """Weights of a rank, taken block after block in cyclic order.

    Args:
        file: Where they are read.
        cycle: The loads in execution order.
        resident: Indices of those that stay.
        size: Buffers for the others, at least 2.
        recorder: Takes what is loaded and waited for.
    """

    def __init__(
        self,
        file: WeightFile,
        cycle: tuple[Load, ...],
        resident: frozenset[int],
        *,
        size: int = 2,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._file = file
        self._cycle = cycle
        self.times = LoadTimes()
        self._resident = {index: self._load(cycle[index], Buffer(cycle[index].nbytes)) for index in sorted(resident)}
        self._streamed = [index for index in range(len(cycle)) if index not in resident]
        self._changed = threading.Condition()
        self._ready: list[_Slot] = []
        self._error: EdgeError | OSError | None = None
        self._closed = False
        self._position = self._generation = 0
        largest = max((cycle[index].nbytes for index in self._streamed), default=0)
        self._free = [_Slot(Buffer(largest)) for _ in range(size if self._streamed else 0)]
        self._thread: threading.Thread | None = None
        if self._streamed:
            self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
            self._thread.start()

    @property
    def streams(self) -> bool:
        """Whether anything is loaded again for each step."""
        return bool(self._streamed)

    @contextlib.contextmanager
    def take(self, index: int) -> Iterator[Tensors]:
        """The tensors of one load, valid inside the block; loads must be taken in the order of the cycle.

        Raises:
            ShardError: The weights cannot be read.
        """
        kept = self._resident.get(index)
        if kept is not None:
            yield kept
            return
        slot = self._wait_for(index)
        try:
            yield slot.tensors
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether a read failed: such a window is made anew."""
        return self._error is not None

    def rewind(self) -> None:
        """Begin the cycle again, after a step that was left in its middle."""
        with self._changed:
            self._generation += 1
            self._position = 0
            self._free += self._ready
            self._ready = []
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread and let go of all memory."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._resident.clear()
        self._ready.clear()
        self._free.clear()
        self._file.close()

    def _wait_for(self, index: int) -> _Slot:
        began = time.perf_counter()
        with self._changed:
            while not self._ready and self._error is None and not self._closed:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if self._closed:
                raise PeerError("Wanted the next block of weights, found the window closed.")
            slot = self._ready.pop(0)
        ended = time.perf_counter()
        self.times.wait_s += ended - began
        if self._recorder is not None:
            self._recorder.add("wait", self._cycle[index].name, began, ended)
        if slot.index != index:
            raise AssertionError(f"load {index} was taken out of order: the window has {slot.index}")
        return slot

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._free and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                slot, generation = self._free.pop(), self._generation
                slot.index = self._streamed[self._position]
                self._position = (self._position + 1) % len(self._streamed)
            try:
                slot.tensors = self._load(self._cycle[slot.index], slot.buffer)
            except (EdgeError, OSError) as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                (self._ready if generation == self._generation else self._free).append(slot)
                self._changed.notify_all()

    def _load(self, load: Load, buffer: Buffer) -> Tensors:
        began = time.perf_counter()
        for offset, nbytes, at in load.reads:
            self._file.read(offset, buffer.view[at : at + nbytes])
        ended = time.perf_counter()
        self.times.load_s += ended - began
        if self._recorder is not None:
            self._recorder.add("load", load.name, began, ended)
        self.times.loaded_bytes += load.nbytes
        return {view.name: _seen(buffer, view) for view in load.views}


def _seen(buffer: Buffer, view: View) -> Any:  # noqa: ANN401 - a tensor or a packed matrix
    if view.encoding == "float32" or 0 in view.shape:
        return buffer.tensor(view.offset, view.shape)
    rows, width = view.shape
    return buffer.packed(view.offset, (rows, width), view.encoding, transposed=view.transposed)
