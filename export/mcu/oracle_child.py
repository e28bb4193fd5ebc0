"""Runs ``.tflite`` files in the reference engines, in a process of its own: an engine that crashes ends nothing else.

python -m export.mcu.oracle_child      requests on stdin, answers on stdout; ends with stdin

A request is a `HEADER` (engine, limit in seconds, size) and an .npz, an answer a `SIZE` and an .npz. The engine is loaded once;
each request is answered by a fork, so that none sees what another one left. What a fork prints is kept from the answers. Where a
fork fails, this process writes the end of what it said to stderr and ends as it did: by the same status or signal.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

HEADER, SIZE = struct.Struct("<8sdQ"), struct.Struct("<Q")
SAID_BYTES = 2000
_MODULES = {"tflm": "tflite_micro", "litert": "ai_edge_litert.interpreter"}
Array = npt.NDArray[Any]


class Engine(Protocol):
    """One open model; inputs are named by their place and tensors by their index in the file."""

    def set_input(self, place: int, data: Array) -> None:
        """Fill an input of the network."""

    def invoke(self) -> None:
        """Run once."""

    def tensor(self, index: int) -> Array:
        """Any tensor after a run."""


class Micro:
    """TensorFlow Lite Micro in its PyPI package, every intermediate tensor kept."""

    def __init__(self, model: bytes, arena_bytes: int) -> None:
        from tflite_micro import runtime

        self._engine = runtime.Interpreter.from_bytes(
            model, arena_size=arena_bytes, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors
        )

    def set_input(self, place: int, data: Array) -> None:
        """See `Engine`."""
        self._engine.set_input(data, place)

    def invoke(self) -> None:
        """See `Engine`."""
        self._engine.invoke()

    def tensor(self, index: int) -> Array:
        """See `Engine`."""
        return np.array(self._engine.GetTensor(index, 0)["tensor_data"])


class Litert:
    """LiteRT's reference kernels."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._engine = Interpreter(
            model_content=model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        self._engine.allocate_tensors()
        self._inputs = [int(detail["index"]) for detail in self._engine.get_input_details()]

    def set_input(self, place: int, data: Array) -> None:
        """See `Engine`."""
        self._engine.set_tensor(self._inputs[place], data)

    def invoke(self) -> None:
        """See `Engine`."""
        self._engine.invoke()

    def tensor(self, index: int) -> Array:
        """See `Engine`."""
        return np.array(self._engine.get_tensor(index))


def run_all(engine: Engine, inputs: Sequence[Array], tensors: Sequence[int]) -> dict[str, Array]:
    """Run every case.

    Args:
        engine: An open model.
        inputs: One array for each input of the network, shape (cases, ...).
        tensors: Indices of the tensors that are wanted.

    Returns:
        By index as text, shape (cases, ...).
    """
    found: dict[str, list[Array]] = {str(index): [] for index in tensors}
    for case in zip(*inputs, strict=True):
        for place, data in enumerate(case):
            engine.set_input(place, np.ascontiguousarray(data))
        engine.invoke()
        for index in tensors:
            found[str(index)].append(engine.tensor(index))
    return {name: np.stack(arrays) for name, arrays in found.items()}


def open_engine(name: str, model: bytes, arena_bytes: int) -> Engine:
    """The engine of that name."""
    return Litert(model) if name == "litert" else Micro(model, arena_bytes)


def main() -> int:
    """Answer until nobody asks any more, or a fork fails."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while len(header := _read(HEADER.size)) == HEADER.size:
        name, limit_s, size = HEADER.unpack(header)
        engine = name.rstrip(b"\0").decode()
        importlib.import_module(_MODULES[engine])
        status, said = _in_a_fork(engine, limit_s, size)
        if status != 0:
            os.write(2, said)
            return _end_by(status)
    return 0


def _in_a_fork(engine: str, limit_s: float, size: int) -> tuple[int, bytes]:
    """The exit status of a fork that answers, and the end of what it said."""
    listen, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            answers = os.dup(1)
            os.dup2(say, 1)
            os.dup2(say, 2)
            os.close(listen)
            os.close(say)
            status = _answer(engine, limit_s, size, answers)
        finally:
            os._exit(status)
    os.close(say)
    said = _listen(listen, pid)
    os.close(listen)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def _answer(name: str, limit_s: float, size: int, answers: int) -> int:
    """Read the request and answer; whatever an engine raises is its refusal, told in the last line of stderr."""
    data = _read(size)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # ends the fork, wherever it is
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as request:
            inputs = [request[f"input_{place}"] for place in range(int(request["inputs"]))]
            engine = open_engine(name, request["model"].tobytes(), int(request["arena_bytes"]))
            found = run_all(engine, inputs, request["tensors"].tolist())
    except Exception as error:  # it reads the file itself, and raises whatever it likes
        os.write(2, f"\n{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        return 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    written = io.BytesIO()
    np.savez(written, **found)  # type: ignore[arg-type]  # no array is called allow_pickle
    with open(answers, "wb") as stream:
        stream.write(SIZE.pack(written.tell()))
        stream.write(written.getbuffer())
    return 0


def _listen(pipe: int, pid: int) -> bytes:
    """The end of what a fork says until it ends; it is killed when nobody waits for its answer."""
    said, poller = b"", select.poll()
    poller.register(pipe, select.POLLIN)
    poller.register(0, 0)  # an end of stdin is told all the same
    while True:
        ready = [file for file, _ in poller.poll()]
        if 0 in ready:
            os.kill(pid, signal.SIGKILL)
            poller.unregister(0)
        if pipe in ready:
            data = os.read(pipe, 1 << 16)
            if not data:
                return said
            said = (said + data)[-SAID_BYTES:]


def _read(size: int) -> bytes:
    """So many bytes of stdin; fewer at its end."""
    data = bytearray()
    while len(data) < size and (piece := os.read(0, min(size - len(data), 1 << 20))):
        data += piece
    return bytes(data)


def _end_by(status: int) -> int:
    """A signal ends this process as it ended the fork; else the exit status."""
    if status < 0:
        with contextlib.suppress(OSError):  # some cannot be caught
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return abs(status)


if __name__ == "__main__":
    sys.exit(main())
