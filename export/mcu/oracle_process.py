"""Keeps the reference engines loaded in a process of its own (`oracle_child`), which answers each request in a fork."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.child import ROOT, child_environment
from export.mcu.oracle_child import HEADER, SAID_BYTES, SIZE

_CHILD = [sys.executable, "-m", "export.mcu.oracle_child"]


@dataclass(frozen=True)
class Ended:
    """No answer: the engine ended instead."""

    status: int  # negative: the number of a signal
    said: str


class OracleProcess:
    """Answers requests, for callers of any thread, one at a time.

    The process begins with the first request and again after one that made an engine fail. It ends with this object,
    and whatever it does when the program ends, also by a signal.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the child
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Ended | None] = lambda: None

    def ask(self, engine: str, request: bytes, *, limit_s: float, most_bytes: int) -> bytes | Ended:
        """Let an engine answer.

        Args:
            engine: Its name in `oracle_child`.
            request: An .npz.
            limit_s: The engine may take so long; it is ended by SIGALRM then.
            most_bytes: A longer answer is none.

        Returns:
            An .npz, or how the engine ended.
        """
        with self._lock, contextlib.ExitStack() as failed:
            child = self._running()
            failed.callback(self._end)  # nobody reads what may still come, after Ctrl-C neither
            answer = _exchange(child, HEADER.pack(engine.encode(), limit_s, len(request)) + request, most_bytes)
            if answer is None:
                return self._end() or Ended(-signal.SIGKILL, "")  # it was ended already: with the program
            failed.pop_all()
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        child = self._child
        if child is None or child.poll() is not None:
            self._end()
            child = self._child = subprocess.Popen(  # a session of its own, which ends as a whole
                _CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                cwd=ROOT, env=child_environment(OPENBLAS_NUM_THREADS="1"),  # it forks, and needs no threads
            )  # fmt: skip
            self._end = weakref.finalize(self, _end, child)
        return child


def _exchange(child: subprocess.Popen[bytes], request: bytes, most_bytes: int) -> bytes | None:
    """The answer; none where the child ended or says what is none."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(request)
        child.stdin.flush()
    except OSError:  # it is gone
        return None
    size = child.stdout.read(SIZE.size)
    if len(size) < SIZE.size or SIZE.unpack(size)[0] > most_bytes:
        return None
    answer = child.stdout.read(SIZE.unpack(size)[0])
    return answer if len(answer) == SIZE.unpack(size)[0] else None


def _end(child: subprocess.Popen[bytes]) -> Ended:
    """End it and its fork; how it ended, if it did by itself, and what it said last."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        said = child.stderr.read()[-SAID_BYTES:].decode("utf-8", "replace")
    with contextlib.suppress(OSError):  # what was not written yet has no reader
        child.stdin.close()
    return Ended(child.wait(), said)
