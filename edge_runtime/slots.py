"""Which artefacts a device runs: a pointer file that is switched in one step and remembers what ran before."""

import logging
import os
import shutil
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.messages import Slots

log = logging.getLogger(__name__)
_POINTER = "active.json"
_MAX_POINTER_BYTES = 4096


class SlotError(EdgeError):
    """The device's state folder cannot be used."""


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the pointer file."""

    v: int = 1
    active: Slots = Slots()
    previous: Slots = Slots()


class SlotStore:
    """The state folder of a device: `artefacts/<id>/`, `incoming/` and the pointer file.

    A damaged pointer file counts as none: the device must come up, or nobody could deploy to it again.

    Raises:
        SlotError: The folder cannot be made, or the pointer file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: str | None = None  # why what was deployed does not run, until the next deployment
        self._artefacts = folder / "artefacts"
        try:
            self._artefacts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SlotError(
                f"Wanted a folder for deployed artefacts, found: {error}. Choose another --state."
            ) from error
        self._pointer = self._read()

    @property
    def incoming(self) -> Path:
        """Where a transfer may write."""
        return self.folder / "incoming"

    @property
    def active(self) -> Slots:
        """What runs, or should after a restart."""
        return self._pointer.active

    @property
    def previous(self) -> Slots:
        """What ran before."""
        return self._pointer.previous

    def open(self, artefact: str | None) -> Artefact | None:
        """Open and check a stored artefact by id; null stays null."""
        return None if artefact is None else open_artefact(self._artefacts / artefact)

    def adopt(self, artefact: Artefact) -> Artefact:
        """Move a checked artefact into the store, under its id; on the disk before a pointer can name it."""
        target = self._artefacts / artefact.id
        if artefact.folder != target:
            for root, _, names in os.walk(artefact.folder, topdown=False):
                for name in names:
                    _sync(Path(root, name))
                _sync(Path(root))
            shutil.rmtree(target, ignore_errors=True)
            artefact.folder.rename(target)
            _sync(self._artefacts)
        return Artefact(target, artefact.manifest)

    def activate(self, artefact: Artefact) -> None:
        """Point the slot of the artefact's role to it, and remove what neither slot nor the one before needs.

        Raises:
            SlotError: A tail.
        """
        if artefact.manifest.role == "tail":
            raise SlotError(
                "Wanted a head or a whole model for a device, found a tail. Serve it: `headtail tail serve`."
            )
        slot = "head" if artefact.manifest.role == "head" else "whole"
        self._switch(msgspec.structs.replace(self.active, **{slot: artefact.id}), self.active)

    def roll_back(self) -> None:
        """Make what ran before run again."""
        self._switch(self.previous, self.active)

    def fall_back(self, slots: Slots, why: Exception) -> None:
        """Run these slots for now, because what is active cannot; the pointer file stays, the next start tries again."""
        self.problem = f"{type(why).__name__}: {why}"[:500]
        self._pointer = Pointer(1, slots, self._pointer.previous)

    def _switch(self, active: Slots, previous: Slots) -> None:
        self._pointer = Pointer(1, active, previous)
        partial = self.folder / (_POINTER + ".part")
        with partial.open("wb") as stream:
            stream.write(msgspec.json.encode(self._pointer))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.folder / _POINTER)
        _sync(self.folder)
        self.problem = None
        needed = {active.head, active.whole, previous.head, previous.whole}
        for path in self._artefacts.iterdir():
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)

    def _read(self) -> Pointer:
        path = self.folder / _POINTER
        if not path.exists():
            return Pointer()
        try:
            with path.open("rb") as stream:
                return msgspec.json.decode(stream.read(_MAX_POINTER_BYTES), type=Pointer)
        except OSError as error:
            raise SlotError(f"Wanted the pointer file of a device, found: {error}. Choose another --state.") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.problem = f"Wanted the pointer file of a device, found: {error}, in {path}."[:500]
            log.error("%s Nothing runs until the next deployment.", self.problem)
            return Pointer()


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
