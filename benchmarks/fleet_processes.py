"""The processes of a fleet under test: started, killed, started again, none left behind."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from device_profiles.errors import EdgeError
from orchestrator.broker import BrokerOptions, MosquittoBroker


class FleetBenchError(EdgeError):
    """The fleet under test did not get where it should."""


class FleetProcesses:
    """A broker and named programs on one database; a context."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._broker = MosquittoBroker(BrokerOptions(port=0))
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def broker(self) -> str:
        """Its URL; the port stays the same over restarts."""
        return self._broker.url

    @property
    def names(self) -> list[str]:
        """What can be killed."""
        return ["broker", *self._commands]

    def start_program(self, name: str, module: str) -> None:
        """Start `python -m module` as a program of the fleet."""
        command = ["-m", module, "--store", self.store, "--broker", self.broker, "--owner", name]
        self._start(name, command)

    def start_devices(self, name: str, count: int, first: int, *options: str) -> None:
        """Start simulated devices that remember in a file of this name."""
        command = ["-m", "orchestrator.fleet.simulator", "--broker", self.broker, "--devices", str(count)]
        self._start(name, [*command, "--first", str(first), "--state", str(self.ledger(name)), *options])

    def ledger(self, name: str) -> Path:
        """What devices of this name have done."""
        return self.folder / f"{name}.jsonl"

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash would."""
        if name == "broker":
            self._broker.stop(kill=True)
            return
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start it again."""
        if name == "broker":
            self._broker.start()
        else:
            self._spawn(name)

    def check_alive(self) -> None:
        """Raise when a program has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                tail = (self.folder / f"{name}.log").read_text(errors="replace")[-600:]
                raise FleetBenchError(f"Wanted {name} to run, found exit status {process.returncode}: {tail}")

    def close(self) -> None:
        """End everything."""
        for process in self._running.values():
            process.kill()
            process.wait()
        self._broker.close()

    def __enter__(self) -> "FleetProcesses":
        """The broker runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _start(self, name: str, arguments: list[str]) -> None:
        self._commands[name] = [sys.executable, *arguments]
        self._spawn(name)

    def _spawn(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                self._commands[name], stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait, looking every 0.2 s; returns how long it took.

    Raises:
        FleetBenchError: It did not come about in time.
    """
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if condition():
            return time.monotonic() - begun
        time.sleep(0.2)
    raise FleetBenchError(f"Wanted {what} within {seconds:.0f} s, found it has not come about.")
