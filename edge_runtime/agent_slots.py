"""Which agent a device runs: slots for its code, and a file that is switched in one step and remembers what ran before.

The launcher of the installed agent and every agent that ever runs from a slot read and write `agent.json`. So its fields
may only be added to, and each of them passes over those that it does not know. Null in it is the installed agent.
"""

import logging
import shutil
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.durable import sync, sync_tree, write_durably
from edge_runtime.floors import keep_floors, kept_floors
from edge_runtime.messages import Count, Sha256

log = logging.getLogger(__name__)
FOLDER = "agents"
_POINTER = "agent.json"
MAX_STARTS = 3  # of an agent on probation; the next one goes back


class AgentSlotError(EdgeError):
    """The slots of the agent cannot be used."""


class AgentProbation(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that has not proven itself yet."""

    artefact: Sha256
    rev: Count  # of the desired state that asked for it
    seconds: float  # it must be connected for so long
    confirm_s: float  # and have confirmed so long after its start
    starts: Count = 0
    models_ran: bool = True  # before it came; then they must run under it
    floors: dict[str, int] = {}  # what the floors become when it is committed


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The last agent that did not prove itself."""

    artefact: Sha256
    rev: Count
    error: str


class AgentPointer(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `agent.json`. `previous` is what was committed before."""

    v: int = 1
    active: Sha256 | None = None
    previous: Sha256 | None = None
    probation: AgentProbation | None = None
    floors: dict[str, int] = {}  # line -> lowest counter that may still be activated
    refused: Refused | None = None


class AgentSlots:
    """`agents/<id>/` and the pointer file, in a state folder.

    A damaged pointer file counts as none: the installed agent runs, and the host sends it what it should be. The floors stay.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path = state / _POINTER

    @property
    def pointer(self) -> AgentPointer:
        """As it is on the disk now: the launcher and the agent are two processes."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=AgentPointer)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("Wanted to know which agent runs, found: %s, in %s. The installed one does.", error, self._path)
        return AgentPointer(floors=kept_floors(self._path))

    def folder(self, artefact: str) -> Path:
        """The slot of this bundle."""
        return self._state / FOLDER / artefact

    def adopt(self, folder: Path, artefact: str) -> None:
        """Move a checked bundle into its slot; on the disk before a pointer can name it.

        Raises:
            AgentSlotError: The slot cannot be written.
        """
        slot = self.folder(artefact)
        try:
            sync_tree(folder)
            slot.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(slot, ignore_errors=True)
            folder.rename(slot)
            sync(slot.parent)
            sync(self._state)
        except OSError as error:
            raise AgentSlotError(f"Wanted to keep an agent in {slot}, found: {error}.") from error

    def activate(self, artefact: str | None, probation: AgentProbation | None) -> None:
        """Let another agent run from the next start on; without probation it is committed at once."""
        now = self.pointer
        before = now.active if now.probation is None else now.previous
        before = now.previous if before == artefact else before  # a slot that was damaged and came again
        self._switch(msgspec.structs.replace(now, active=artefact, previous=before, probation=probation, refused=None))

    def count_start(self) -> bool:
        """Note that the agent is started; false when one on probation has used its starts up and must go."""
        now = self.pointer
        if now.probation is None:
            keep_floors(self._path, now.floors)  # an agent of an earlier version kept none
            return True
        starts = now.probation.starts + 1
        self._switch(msgspec.structs.replace(now, probation=msgspec.structs.replace(now.probation, starts=starts)))
        return starts <= MAX_STARTS

    def commit(self) -> None:
        """What runs has proven itself: floors rise, and there is no way back below them."""
        now = self.pointer
        if now.probation is None:
            return
        new = now.probation.floors
        floors = {line: max(now.floors.get(line, 0), new.get(line, 0)) for line in {**now.floors, **new}}
        self._switch(msgspec.structs.replace(now, probation=None, floors=floors))

    def roll_back(self, why: str) -> None:
        """What is on probation goes; what was committed before runs from the next start on."""
        now = self.pointer
        if now.probation is None:
            return
        log.error("the agent %s goes: %s", now.probation.artefact[:16], why)
        refused = Refused(artefact=now.probation.artefact, rev=now.probation.rev, error=why[:500])
        self._switch(msgspec.structs.replace(now, active=now.previous, probation=None, refused=refused))

    def _switch(self, pointer: AgentPointer) -> None:
        self._state.mkdir(parents=True, exist_ok=True)
        keep_floors(self._path, pointer.floors)
        write_durably(self._path, msgspec.json.encode(pointer))
        if (self._state / FOLDER).is_dir():
            for slot in (self._state / FOLDER).iterdir():
                if slot.name not in (pointer.active, pointer.previous):
                    shutil.rmtree(slot, ignore_errors=True)


def running_slot(module: str) -> str | None:
    """The bundle that a module's file belongs to; null when that is the installed agent.

    Args:
        module: `__file__` of a module in edge_runtime.
    """
    place = Path(module).resolve().parents  # .../agents/<id>/site/edge_runtime
    if len(place) > 3 and place[3].name == FOLDER and place[1].name == "site" and len(place[2].name) == 64:
        return place[2].name
    return None
