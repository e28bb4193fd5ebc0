"""Bring a device in line with the desired state that the host retains, and say how far it is.

Only the newest revision counts; one that was decided, well or badly, is not tried again after a restart, unless it was for want of
room on the disk. Everything but the files of artefacts and the slots is in `follow.json`, written whole and synced; where that
cannot be written the device goes on with what it knows, says so, and writes it later.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.deployments import Deployments
from edge_runtime.durable import lacks_room, write_durably
from edge_runtime.messages import (
    ArtefactRef,
    Count,
    DeployStatus,
    Desired,
    JobId,
    JobOrder,
    JobStatus,
    Models,
    Reported,
    Settings,
    Sha256,
    Slots,
)
from edge_runtime.self_update import SelfUpdate
from edge_runtime.slots import Probation, SlotStore

log = logging.getLogger(__name__)
MEMORY_NAME = "follow.json"
_MAX_DONE = 256
_WRITE_AGAIN_S = 5.0
_TRY_AGAIN_S = 30.0  # what there was no room for
State = Literal["idle", "downloading", "verifying", "probation", "active", "failed", "rolled_back"]


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept over restarts; an older agent that comes back passes over what it does not know."""

    starts: Count = 0
    rev: Count = 0  # newest desired state that was begun
    state: State = "idle"
    job: JobId | None = None
    version: str | None = None  # of the models that run, for people
    coming: str | None = None  # of those on probation
    wanted: Slots | None = None  # what the slots hold once `coming` runs
    agent: Sha256 | None = None  # the bundle on its way into the agent's own slot, or on probation there
    error: str | None = None
    short: bool = False  # it failed for want of room: it is tried again
    done: tuple[JobStatus, ...] = ()  # answers to jobs, so that none is done twice
    config: Settings = {}
    config_rev: Count = 0
    config_problem: str | None = None


class Follower:
    """Follows desired states. `follow` and `work` run in one thread; `observe` is called from any.

    Args:
        store: Of the device.
        deployments: Gets and verifies artefacts.
        updates: The agent's own slots.
        boot: Of the agent.
        activate: Makes stored artefacts run on probation.
        publish: Sends a report or a job's status; false when there is no connection.
        configure: Takes a remote configuration into use, and says what is wrong with it.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        store: SlotStore,
        deployments: Deployments,
        updates: SelfUpdate,
        *,
        boot: str,
        activate: Callable[[Slots, Probation], None],
        publish: Callable[[Reported | JobStatus], object],
        configure: Callable[[Settings], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._deployments, self._updates, self._boot = store, deployments, updates, boot
        self._activate, self._publish, self._configure, self._clock = activate, publish, configure, clock
        self._path = store.folder / MEMORY_NAME
        self._lock = threading.Lock()
        self._seq = 0
        self._memory = _read(self._path)
        self._last: Desired | None = None  # newest that came
        self._waiting: Desired | None = None  # to be followed once the agent has proven itself, or there may be room
        self._not_before = 0.0  # on `clock`
        self._unwritten: str | None = None  # why what is remembered is not on the disk
        self._write_at = 0.0  # on `clock`
        self._resume()

    @property
    def starts(self) -> int:
        """How often this device has started."""
        return self._memory.starts

    @property
    def rev(self) -> int:
        """The newest desired state that was begun."""
        return self._memory.rev

    @property
    def config_rev(self) -> int:
        """Of the remote configuration in use."""
        return self._memory.config_rev

    def _resume(self) -> None:
        """What was begun before this start: decided meanwhile, still going on, or to be begun again."""
        memory = self._memory
        state, version, agent, error = memory.state, memory.version, memory.agent, memory.error
        if state in ("downloading", "verifying"):  # the retained desired state begins it again
            state, agent = "idle", None
        elif state == "probation" and agent is not None:
            if not self._updates.on_probation:
                error = self._updates.refusal(agent, memory.rev)
                state, agent = "idle" if error is None else "rolled_back", None
        elif state == "probation" and self._store.probation is None:
            # Cut before the switch, at the commit, or going back.
            done = self._store.active == memory.wanted
            state, version = ("active", memory.coming) if done else ("idle", version)
        self._keep(starts=memory.starts + 1, state=state, version=version, agent=agent, error=error)

    def configure_again(self) -> None:
        """Take what was configured before the start into use."""
        problem = self._configure(self._memory.config)
        if problem != self._memory.config_problem:
            self._keep(config_problem=problem)

    def follow(self, desired: Desired) -> None:
        """Do what a desired state says, unless it is old or decided."""
        if desired.rev < self._memory.rev:
            return
        self._last = desired
        if (desired.config_rev, desired.config) != (self._memory.config_rev, self._memory.config):
            problem = self._configure(desired.config)
            self._keep(config=desired.config, config_rev=desired.config_rev, config_problem=problem)
        decided = self._memory.state != "idle" and not self._memory.short
        if desired.rev == self._memory.rev and decided:
            self.report()
            return
        if self._updates.on_probation:
            self._waiting = desired
            return
        self._keep(rev=desired.rev, job=desired.job, state="idle", error=None, agent=None)
        ref = desired.agent
        if ref is not None and self._is_to_change(ref, desired):
            self._attempt(desired, lambda: self._change_agent(desired, ref))
            return
        models = desired.models
        if models is None or self._slots_of(models) == self._store.active:
            pending = self._store.probation
            if models is not None and pending is None:
                self._keep(version=models.version or None)
            elif models is not None:
                self._keep(coming=models.version or None, wanted=self._store.active)
            self._set("active" if pending is None else "probation")
            return
        self._attempt(desired, lambda: self._change(desired, models))

    def go_on(self) -> None:
        """Write what could not be written, and follow what waited."""
        if self._unwritten is not None and self._clock() >= self._write_at:
            self._keep()
        if self._clock() < self._not_before:
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.follow(waiting)

    def agent_proved(self) -> None:
        """The agent that runs has proven itself: it does what else its revision asks for. From the main loop."""
        self._keep(agent=None, state="idle")
        self._waiting = self._last

    def _attempt(self, desired: Desired, change: Callable[[], None]) -> None:
        try:
            change()
        except Exception as error:  # an engine's own too: the host must hear of it, or it waits in vain
            if self._deployments.stopping:
                return  # begun again after the start
            log.error("desired state %d cannot be reached: %s", desired.rev, error)
            short = lacks_room(error)
            if short:
                self._waiting, self._not_before = desired, self._clock() + _TRY_AGAIN_S
            self._set("failed", error=f"{type(error).__name__}: {error}"[:500], short=short)

    def observe(self, status: DeployStatus) -> None:
        """What became of what is on probation."""
        if self._memory.state != "probation" or self._memory.agent is not None:
            return
        if status.state == "committed":
            self._keep(version=self._memory.coming)
            self._set("active")
        elif status.state == "rolled-back":
            self._set("rolled_back", error=status.error)

    def work(self, order: JobOrder) -> None:
        """Do a job once; one that was done before is answered again."""
        known = next((one for one in self._memory.done if one.job == order.job), None)
        if known is not None:
            self._publish(msgspec.structs.replace(known, boot=self._boot, attempt=order.attempt))
            return
        status = JobStatus(boot=self._boot, job=order.job, attempt=order.attempt, state="succeeded")
        if order.cancel:
            status = msgspec.structs.replace(status, state="cancelled")
        elif order.kind == "echo":
            status = msgspec.structs.replace(status, result=order.arguments)
        else:
            text = f"Wanted a kind of job that this agent knows (echo), found {order.kind!r}."
            status = msgspec.structs.replace(status, state="rejected", error=text)
        self._keep(done=(*self._memory.done, status)[-_MAX_DONE:])
        self._publish(status)

    def report(self, done: int = 0, total: int = 0) -> None:
        """Say how far the device is."""
        self._publish(self.reported(done, total))

    def reported(self, done: int = 0, total: int = 0) -> Reported:
        """What there is to say."""
        with self._lock:
            self._seq += 1
            memory = self._memory
            return Reported(
                boot=self._boot,
                seq=self._seq,
                rev=memory.rev,
                job=memory.job,
                state=memory.state,
                version=memory.version,
                slots=self._store.active,
                done_bytes=done,
                total_bytes=total,
                error=memory.error or self._unwritten,
                config_rev=memory.config_rev,
                config_problem=memory.config_problem,
            )

    def _change(self, desired: Desired, models: Models) -> None:
        refs = [ref for ref in (models.head, models.whole) if ref is not None]
        total = sum(ref.size or 0 for ref in refs)
        self._set("downloading")
        floors: dict[str, int] = {}
        before = 0
        for ref in refs:
            for line, floor in self._deployments.obtain(ref, self._progress(total, before)).items():
                floors[line] = max(floor, floors.get(line, 0))
            before += ref.size or 0
        self._set("verifying")
        wanted = self._slots_of(models)
        first = wanted.head or wanted.whole or "0" * 64
        self._keep(coming=models.version or None, wanted=wanted, state="probation")
        self._activate(wanted, Probation(first, first[:16], 0, desired.probation_s, None, floors))
        self.report()

    def _is_to_change(self, ref: ArtefactRef, desired: Desired) -> bool:
        """Whether the agent changes: not where the wanted one failed before and this revision brings other models."""
        if not self._updates.differs(ref):
            return False
        models = desired.models
        others = models is not None and self._slots_of(models) != self._store.active
        return not (others and self._updates.refusal(ref.artefact) is not None)

    def _change_agent(self, desired: Desired, ref: ArtefactRef) -> None:
        decided = self._updates.refusal(ref.artefact, desired.rev)
        if decided is not None:  # and an older agent has come back that does not remember
            self._set("rolled_back", error=decided)
            return
        self._keep(agent=ref.artefact)
        self._set("downloading")
        floors = self._updates.obtain(ref, self._deployments.download, self._progress(ref.size or 0))
        self._set("verifying")
        ran = self._store.problem is None
        self._set("probation")  # said before the agent ends for it
        self._updates.switch(ref, rev=desired.rev, seconds=desired.probation_s, floors=floors, models_ran=ran)

    def _progress(self, total: int, before: int = 0) -> Callable[[int], None]:
        """Reports each twentieth of what is fetched."""
        said = before

        def progress(here: int) -> None:
            nonlocal said
            if before + here - said >= max(total // 20, 1):
                said = before + here
                self.report(said, total)

        return progress

    def _slots_of(self, models: Models) -> Slots:
        return Slots(
            head=models.head.artefact if models.head else None, whole=models.whole.artefact if models.whole else None
        )

    def _set(self, state: State, *, error: str | None = None, short: bool = False) -> None:
        self._keep(state=state, error=error, short=short)
        self.report()

    def _keep(self, **changes: object) -> None:
        """Remember; what cannot be written now is written later, and the host hears of it."""
        with self._lock:
            self._memory = msgspec.structs.replace(self._memory, **changes)
            before = self._unwritten
            try:
                write_durably(self._path, msgspec.json.encode(self._memory))
                self._unwritten = None
            except OSError as error:
                self._write_at = self._clock() + _WRITE_AGAIN_S
                self._unwritten = f"Wanted to keep what this device remembers, found: {error}. Make room on the disk."[
                    :500
                ]
        if self._unwritten != before:
            if self._unwritten is None:
                log.info("what this device remembers is on the disk again")
            else:
                log.error("%s It goes on without, and tries again.", self._unwritten)
            self.report()


def read_memory(path: Path) -> Memory:
    """What a device remembers; nothing where there is no such file.

    Raises:
        OSError: It cannot be read.
        msgspec.DecodeError: It is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()


def _read(path: Path) -> Memory:
    try:
        return read_memory(path)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("Wanted what this device remembers, found: %s, in %s. It follows the host anew.", error, path)
        return Memory()
