"""The parent's side of a measuring process: start it, give it turns, take its answer."""

import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.profile_child import ANSWER, REQUEST, Answer, Request
from edge_runtime.session import EngineError

_SPARE_S = 300.0
BLOCKS = 5


class ProfilerError(EdgeError):
    """A measurement did not come to its end."""


class MeasuringProcess:
    """A fresh process that measures in `folder`; use as a context, so that it never outlives the measurement."""

    def __init__(self, request: Request, folder: Path, *, turns: int = BLOCKS, processes: int = 1) -> None:
        """Start it.

        Args:
            request: What it measures.
            folder: Empty; for what the two say to each other.
            turns: How many blocks it will be asked for.
            processes: That take turns with it: it waits for the others' blocks as long as for its own.
        """
        (folder / REQUEST).write_bytes(msgspec.json.encode(request))
        self._folder = folder
        self._limit_s = (
            turns * processes * request.limit_s + 60 * request.minutes + request.idle_s + request.active_s + _SPARE_S
        )
        self._errors = (folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime.profile_child", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._late = False
        self._timer = threading.Timer(self._limit_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> "MeasuringProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def wait_ready(self) -> bool:
        """Wait until the block, or the warm-up, is done; false when the process ended instead."""
        return self._wait_line()

    def turn(self) -> bool:
        """Let it run one block; false when it has ended."""
        stream = self._process.stdin
        if stream is None:
            return False
        try:
            stream.write("\n")
            stream.flush()
        except BrokenPipeError:
            return False
        return self._wait_line()

    def finish(self) -> Answer:
        """No more turns; wait for the answer.

        Raises:
            EngineError: The engine refused the model there.
            ProfilerError: The process died or took too long.
        """
        self._process.communicate()
        if self._late:
            raise ProfilerError(f"Wanted figures within {self._limit_s:.0f} s, found the process still measuring.")
        if self._process.returncode != 0:
            said = (self._folder / "stderr").read_text("utf-8", "replace").strip()[-800:]
            raise ProfilerError(
                f"Wanted figures from a fresh process, found exit status {self._process.returncode} (negative: killed, "
                f"for lack of memory?): {said}"
            )
        answer = msgspec.json.decode((self._folder / ANSWER).read_bytes(), type=Answer)
        if answer.error is not None:
            raise EngineError(answer.error)
        return answer

    def _wait_line(self) -> bool:
        stream = self._process.stdout
        line = stream.readline() if stream is not None else ""
        while line and line != "done\n":
            line = stream.readline() if stream is not None else ""
        return bool(line)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _give_up(self) -> None:
        self._late = True
        self.kill()


def take_turns(first: MeasuringProcess, second: MeasuringProcess | None, blocks: int = BLOCKS) -> None:
    """Let two warm processes run blocks in turn; stops when one has ended."""
    for _ in range(blocks):
        if not first.turn() or (second is not None and not second.turn()):
            return
