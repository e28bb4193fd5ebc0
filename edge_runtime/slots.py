"""Which artefacts a device runs: a pointer file that is switched in one step and remembers what ran before.

What was activated is on probation until it is committed; until then the device may go back to what was committed
before. Everything that must change together (slots, probation, floors) is one file, written whole, synced and renamed.
"""

import logging
import shutil
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, Gate, open_artefact
from edge_runtime.durable import sync, sync_tree, write_durably
from edge_runtime.floors import keep_floors, kept_floors
from edge_runtime.gate import Gatekeeper, Passed
from edge_runtime.messages import Boot, Count, Sha256, Slots
from edge_runtime.signature import MAX_SIGNATURE_BYTES, SIGNATURE_NAME

log = logging.getLogger(__name__)
POINTER_NAME = "active.json"
ARTEFACTS = "artefacts"
_MAX_POINTER_BYTES = 64 << 10
_MAX_LINES = 64  # lines whose floor is remembered
MAX_STARTS = 3  # of an agent on probation; the next one goes back


class SlotError(EdgeError):
    """The device's state folder cannot be used."""


class Probation(msgspec.Struct, frozen=True):  # an older agent that comes back passes over what it does not know
    """What was activated and has not proven itself yet."""

    artefact: Sha256
    transfer: Boot
    starts: Count = 0  # of the agent since; a model that ends the process shows here
    seconds: float | None = None  # how long it must run; the agent's own choice when null
    frames: Count | None = None
    floors: dict[str, int] = {}  # what the floors become when it is committed


class Pointer(msgspec.Struct, frozen=True):  # as above
    """Content of the pointer file. `previous` is what was committed last, as long as something is on probation."""

    v: int = 1
    active: Slots = Slots()
    previous: Slots = Slots()
    probation: Probation | None = None
    floors: dict[str, int] = {}  # line -> lowest counter that may still be activated


class SlotStore:
    """The state folder of a device: `artefacts/<id>/`, `incoming/` and the pointer file.

    A damaged pointer file counts as none: the device must come up, or nobody could deploy to it again. The floors stay.

    Args:
        folder: The state folder.
        gate: Asked for every artefact that is opened.

    Raises:
        SlotError: The folder cannot be made, or the pointer file cannot be read.
    """

    def __init__(self, folder: Path, gate: Gate | None = None) -> None:
        self.folder = folder
        self._gate = gate
        self.problem: str | None = None  # why what was deployed does not run, until the next deployment
        self._artefacts = folder / ARTEFACTS
        try:
            self._artefacts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SlotError(
                f"Wanted a folder for deployed artefacts, found: {error}. Choose another --state."
            ) from error
        self._adopted: set[str] = set()  # stored, and not yet named by a pointer
        self._pointer = self._before = self._read()

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

    @property
    def probation(self) -> Probation | None:
        """What has not proven itself yet."""
        return self._pointer.probation

    @property
    def floors(self) -> dict[str, int]:
        """The lowest counter of every line that may still be activated."""
        return self._pointer.floors

    def open(self, artefact: str | None) -> Artefact | None:
        """Open and check a stored artefact by id; null stays null.

        Raises:
            EdgeError: As `open_artefact`.
            SlotError: Another artefact lies under that id.
        """
        if artefact is None:
            return None
        found = open_artefact(self._artefacts / artefact, self._gate)
        if found.id != artefact:
            raise SlotError(
                f"Wanted artefact {artefact[:16]}.. in {found.folder}, found {found.id[:16]}... Deploy it again."
            )
        return found

    def holds(self, artefact: str) -> bool:
        """Whether an artefact of that id lies in the store."""
        return (self._artefacts / artefact).is_dir()

    def passed(self, artefact: str, gate: Gatekeeper) -> Passed:
        """What the gate says of a stored artefact, by id.

        Raises:
            SignatureError: It may not run.
        """
        path = self._artefacts / artefact / SIGNATURE_NAME
        return gate.ask_for(artefact, path.read_bytes()[: MAX_SIGNATURE_BYTES + 1] if path.is_file() else None)

    def adopt(self, artefact: Artefact) -> Artefact:
        """Move a checked artefact into the store, under its id; on the disk before a pointer can name it."""
        target = self._artefacts / artefact.id
        self._adopted.add(artefact.id)
        if artefact.folder != target:
            sync_tree(artefact.folder)
            shutil.rmtree(target, ignore_errors=True)
            artefact.folder.rename(target)
            sync(self._artefacts)
        return Artefact(target, artefact.manifest)

    def activate(self, artefact: Artefact, probation: Probation | None = None) -> None:
        """Point the slot of the artefact's role to it, and remove what neither slot nor the one before needs.

        Args:
            artefact: In the store.
            probation: Null commits at once.

        Raises:
            SlotError: A tail.
        """
        if artefact.manifest.role == "tail":
            raise SlotError(
                "Wanted a head or a whole model for a device, found a tail. Serve it: `headtail tail serve`."
            )
        slot = "head" if artefact.manifest.role == "head" else "whole"
        self.replace(msgspec.structs.replace(self.active, **{slot: artefact.id}), probation)

    def replace(self, active: Slots, probation: Probation | None = None) -> None:
        """Point all slots at once to stored artefacts; null probation commits."""
        pointer = self._pointer
        pending = pointer.probation
        if probation is not None and pending is not None:  # both prove themselves together
            probation = msgspec.structs.replace(probation, floors={**pending.floors, **probation.floors})
        self._before = pointer
        before = pointer.previous if pending is not None else pointer.active
        self._adopted.clear()  # what `active` names is named by the pointer now
        self._switch(Pointer(1, active, before, probation, pointer.floors), keep=pointer)

    def count_start(self) -> bool:
        """Note that the agent starts; false when what is on probation has used its starts up and must go."""
        pointer = self._pointer
        if pointer.probation is None:
            return True
        starts = pointer.probation.starts + 1
        probation = msgspec.structs.replace(pointer.probation, starts=starts)
        self._switch(msgspec.structs.replace(pointer, probation=probation))
        return starts <= MAX_STARTS

    def commit(self) -> Probation | None:
        """What runs has proven itself: floors rise, and there is no way back below them. Returns what was on probation."""
        pointer, pending = self._pointer, self._pointer.probation
        if pending is None:
            return None
        floors = {
            line: max(pointer.floors.get(line, 0), pending.floors.get(line, 0))
            for line in {**pointer.floors, **pending.floors}
        }
        if len(floors) > _MAX_LINES:
            log.warning("floors of more than %d lines: %s", _MAX_LINES, sorted(floors))
        self._switch(Pointer(1, pointer.active, pointer.previous, None, floors))
        return pending

    def undo(self) -> None:
        """Take the last `activate` back, as if it had never been."""
        self._switch(self._before)

    def roll_back(self) -> None:
        """Make what ran before run again; what is left is not kept as a way forward."""
        pointer = self._pointer
        self._switch(Pointer(1, pointer.previous, pointer.previous, None, pointer.floors))

    def fall_back(self, slots: Slots, why: Exception) -> None:
        """Run these slots for now, because what is active cannot; the pointer file stays, the next start tries again."""
        self.problem = f"{type(why).__name__}: {why}"[:500]
        self._pointer = msgspec.structs.replace(self._pointer, active=slots)

    def _copy_floors(self, pointer: Pointer) -> None:
        """An agent of an earlier version kept none."""
        try:
            keep_floors(self.folder / POINTER_NAME, pointer.floors)
        except OSError as error:  # they are in the pointer file, and copied before it changes
            log.error("Wanted a copy of the floors of this device's versions, found: %s.", error)

    def _switch(self, pointer: Pointer, keep: Pointer | None = None) -> None:
        keep_floors(self.folder / POINTER_NAME, pointer.floors)
        write_durably(self.folder / POINTER_NAME, msgspec.json.encode(pointer))
        self._pointer = pointer
        self.problem = None
        named = [slots for one in (pointer, keep) if one is not None for slots in (one.active, one.previous)]
        needed = {artefact for slots in named for artefact in (slots.head, slots.whole)} | self._adopted
        for path in self._artefacts.iterdir():
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)

    def _read(self) -> Pointer:
        path = self.folder / POINTER_NAME
        try:
            if path.exists():
                pointer = read_pointer(path)
                self._copy_floors(pointer)
                return pointer
        except OSError as error:
            raise SlotError(f"Wanted the pointer file of a device, found: {error}. Choose another --state.") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.problem = f"Wanted the pointer file of a device, found: {error}, in {path}."[:500]
            log.error("%s Nothing runs until the next deployment.", self.problem)
        return Pointer(floors=kept_floors(path))


def read_pointer(path: Path) -> Pointer:
    """The content of a pointer file; an empty one where there is none.

    Raises:
        OSError: It cannot be read.
        msgspec.DecodeError: It is damaged.
    """
    try:
        with path.open("rb") as stream:
            return msgspec.json.decode(stream.read(_MAX_POINTER_BYTES), type=Pointer)
    except FileNotFoundError:
        return Pointer()
