"""Child processes of the demo: each in a group of its own, each said to be ready by itself, none left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from device_profiles.errors import EdgeError
from orchestrator.leash import Leash, held_back


class ChildError(EdgeError):
    """A child process failed or did not become ready; the message ends with what it printed last."""


def headtail(*arguments: str) -> list[str]:
    """The command line of a headtail command with this interpreter."""
    return [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments]


def edge_agent(*arguments: str) -> list[str]:
    """The command line of the device's command with this interpreter."""
    return [sys.executable, "-c", "from edge_runtime.cli import main; main()", *arguments]


class Children:
    """Starts processes and ends them all on exit, however the block is left."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._leash = Leash()
        log_folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Children":
        """Nothing runs yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whatever still runs, the last one first."""
        for name, _ in reversed(self._running.copy()):
            self.stop(name)
        self._leash.close()

    def run(self, name: str, command: Sequence[str]) -> str:
        """Run to the end and return what it printed on standard output.

        Raises:
            ChildError: It exited with another status than 0.
        """
        log = self._log_folder / f"{name}.log"
        with log.open("wb") as errors:
            child = self._spawn(name, command, errors.fileno())
            output, _ = child.communicate()
        self._forget(name, child)
        if child.returncode != 0:
            raise ChildError(f"Wanted `{name}` to end well, found exit status {child.returncode}: {_last_lines(log)}")
        return output.decode()

    def start(self, name: str, command: Sequence[str], *, ready: str, timeout_s: float = 60.0) -> str:
        """Start a server and wait for the line that says it is ready.

        Args:
            name: For the log file and for `stop`.
            command: Program and arguments.
            ready: Text in the line to wait for, on standard output or standard error.
            timeout_s: How long to wait for it.

        Returns:
            The line.

        Raises:
            ChildError: It ended, or was not ready in time.
        """
        child = self._spawn(name, command, subprocess.STDOUT)
        log = self._log_folder / f"{name}.log"
        found: list[str] = []
        seen = threading.Event()
        threading.Thread(target=_copy_output, args=(child, log, ready, found, seen), daemon=True).start()
        if not seen.wait(timeout_s) or not found:
            raise ChildError(f"Wanted `{name}` to say {ready!r} within {timeout_s:.0f} s, found: {_last_lines(log)}")
        return found[0]

    def _spawn(self, name: str, command: Sequence[str], errors: int) -> subprocess.Popen[bytes]:
        """Start a process and remember it; a signal that arrives in between waits, or the child would be forgotten."""
        with held_back():
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._running.append((name, child))
            self._leash.hold(child.pid)
        return child

    def _forget(self, name: str, child: subprocess.Popen[bytes]) -> None:
        self._leash.let_go(child.pid)
        self._running.remove((name, child))

    def peaks(self) -> list[tuple[str, int]]:
        """Names and peak resident bytes (VmHWM) of what runs."""
        found = []
        for name, child in self._running:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{child.pid}/status").read_text()
                found.append((name, 1024 * int(status.split("VmHWM:")[1].split()[0])))
        return found

    def pid(self, name: str) -> int:
        """The process id of what runs under a name."""
        return next(child.pid for known, child in self._running if known == name)

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End a process and its children: politely, or with SIGKILL."""
        for entry in self._running.copy():
            if entry[0] == name:
                _end(entry[1], kill=kill)
                self._forget(*entry)


def _copy_output(
    child: subprocess.Popen[bytes], log: Path, ready: str, found: list[str], seen: threading.Event
) -> None:
    assert child.stdout is not None
    with log.open("wb", buffering=0) as sink:
        for line in child.stdout:
            sink.write(line)
            if ready in line.decode(errors="replace") and not found:
                found.append(line.decode(errors="replace").strip())
                seen.set()
    seen.set()


def _end(child: subprocess.Popen[bytes], *, kill: bool) -> None:
    for number, timeout_s in ((signal.SIGKILL, 5.0),) if kill else ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout_s)
            return
        except ProcessLookupError:
            child.wait(timeout_s)
            return
        except subprocess.TimeoutExpired:
            continue


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return " / ".join(lines[-3:]) or "nothing printed"
