"""What simulated devices keep over a crash: one file that is only appended to, read again at the start."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.messages import INSTALLED, Models


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file."""

    device: str
    boots: int | None = None
    models: Models | None = None
    rev: int | None = None
    agent: str | None = None  # the bundle that it runs from now on
    job: str | None = None  # done: the effect of a job is this line
    attempt: int = 0


@dataclass
class Memory:
    """One device's part."""

    boots: int = 0
    rev: int = 0  # newest desired revision whose models were taken or refused
    models: Models = field(default_factory=Models)
    agent: str = INSTALLED
    done: dict[str, Literal["succeeded"]] = field(default_factory=dict)


class Ledger:
    """The file of one simulator process; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._memories: dict[str, Memory] = {}
        self._descriptor: int | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in read_lines(path):
            self._take(line)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._descriptor, b"\n")  # what a crash left half written ends here

    def memory(self, device: str) -> Memory:
        """What a device remembers."""
        return self._memories.setdefault(device, Memory())

    def add(self, line: Line) -> None:
        """Remember; in the kernel's hands when this returns, so that killing the process loses nothing."""
        self._take(line)
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")

    def _take(self, line: Line) -> None:
        memory = self.memory(line.device)
        memory.boots = memory.boots if line.boots is None else line.boots
        memory.rev = memory.rev if line.rev is None else line.rev
        memory.models = memory.models if line.models is None else line.models
        memory.agent = memory.agent if line.agent is None else line.agent
        if line.job is not None:
            memory.done[line.job] = "succeeded"


def read_lines(path: Path) -> list[Line]:
    """The whole lines of a file; one that a crash cut off is left out."""
    lines: list[Line] = []
    if path.is_file():
        for raw in path.read_bytes().split(b"\n"):
            try:
                lines.append(msgspec.json.decode(raw, type=Line))
            except msgspec.DecodeError:
                continue
    return lines
