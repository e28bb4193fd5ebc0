"""Checkpoints of a training run, and its metrics file: whatever is killed when, the last good state is whole.

A checkpoint holds state dicts and plain numbers only; it is written beside the old one and takes its place in one step.
The metrics file only grows; a checkpoint notes its length, and resuming cuts off what came after.
"""

import contextlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from device_profiles.errors import EdgeError

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
_FORMAT = 1


class CheckpointError(EdgeError):
    """A checkpoint that cannot be written, or that is damaged or of another run."""


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        stage: Index of the stage.
        step: Steps of this stage that are done.
        elapsed_s: Time spent in this stage's steps, over all processes that ran it.
        metrics_bytes: Length of the metrics file.
        finished: Steps that the stages before this one took; fewer than planned where a time budget ended one.
    """

    stage: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    metrics_bytes: int = 0
    finished: tuple[int, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """State dicts at a position. `optimiser` is null at the start of a stage."""

    position: Position
    student: Mapping[str, torch.Tensor]
    optimiser: Mapping[str, Any] | None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, run: str) -> None:
    """Write a checkpoint in one step: afterwards the file is the old one or the new one, never a part.

    Args:
        folder: Of the run.
        checkpoint: State.
        run: Identity of stages, data and seed; loading refuses another one.

    Raises:
        CheckpointError: The disk is full or the folder not writable; the last checkpoint is still there.
    """
    position = checkpoint.position
    buffer = io.BytesIO()
    torch.save(
        {
            "format": _FORMAT,
            "run": run,
            "position": [position.stage, position.step, position.elapsed_s, position.metrics_bytes],
            "finished": list(position.finished),
            "student": dict(checkpoint.student),
            "optimiser": checkpoint.optimiser,
        },
        buffer,
    )
    replace_file(folder / CHECKPOINT, buffer.getbuffer())


def load_checkpoint(folder: Path, *, run: str, device: torch.device) -> Checkpoint | None:
    """The last checkpoint of a run, or null where there is none.

    Raises:
        CheckpointError: Damaged, or of other stages, data or seed.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found = state["run"], state["format"]
        stage, step, elapsed_s, metrics_bytes = state["position"]
        position = Position(stage, step, elapsed_s, metrics_bytes, tuple(state.get("finished", ())))
        checkpoint = Checkpoint(position, state["student"], state["optimiser"])
    except Exception as error:
        raise CheckpointError(
            f"Wanted a checkpoint at {path}, found {type(error).__name__}. Delete it to start over, or restore a copy."
        ) from error
    if found != (run, _FORMAT):
        raise CheckpointError(
            f"Wanted a checkpoint of this run ({run}, format {_FORMAT}) at {path}, found one of {found[0]}, format {found[1]}. "
            "Another network, data, recipe or seed needs another folder."
        )
    return checkpoint


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a crash at any moment leaves the old or the new content.

    Raises:
        CheckpointError: It cannot be written; the old content is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"Wanted to write {len(data)} bytes to {path}, found {error.strerror}. What was there before is kept; make room and "
            "start again with the same folder."
        ) from error


def make_folder(folder: Path) -> None:
    """Make a run's folder where there is none.

    Raises:
        CheckpointError: There is a file in its place, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"Wanted to make the folder {folder}, found {error.strerror}. Give a folder that can be written."
        ) from error


class MetricsFile:
    """Appends rows of metrics as JSON lines."""

    def __init__(self, folder: Path, length: int) -> None:
        """Open, and drop everything behind `length` bytes: rows of steps that will be run again.

        Raises:
            CheckpointError: The file cannot be written.
        """
        path = folder / METRICS
        try:
            self._file = path.open("ab")
            self._file.truncate(min(length, self._file.seek(0, os.SEEK_END)))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise CheckpointError(
                f"Wanted to write {path}, found {error.strerror}. Give a folder that can be written."
            ) from error

    def add(self, row: Mapping[str, object]) -> None:
        """Append one row.

        Raises:
            CheckpointError: The disk is full.
        """
        try:
            self._file.write(msgspec.json.encode(row) + b"\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"Wanted to append to {self._file.name}, found {error.strerror}. Make room and start again."
            ) from error

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file; a row that found no room is lost, and its steps will be run again."""
        with contextlib.suppress(OSError):
            self._file.close()
