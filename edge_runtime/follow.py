"""Bring a device in line with the desired state that the host retains, and say how far it is.

Only the newest revision counts; one that was decided, well or badly, is not tried again after a restart. Everything but
the files of artefacts and the slots is in `follow.json`, written whole and synced.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge_runtime.deployments import Deployments
from edge_runtime.durable import write_durably
from edge_runtime.messages import (
    Count,
    DeployStatus,
    Desired,
    JobId,
    JobOrder,
    JobStatus,
    Models,
    Reported,
    Settings,
    Slots,
)
from edge_runtime.slots import Probation, SlotStore

log = logging.getLogger(__name__)
_NAME = "follow.json"
_MAX_DONE = 256
State = Literal["idle", "downloading", "verifying", "probation", "active", "failed", "rolled_back"]


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept over restarts."""

    starts: Count = 0
    rev: Count = 0  # newest desired state that was begun
    state: State = "idle"
    job: JobId | None = None
    version: str | None = None  # of the models that run, for people
    coming: str | None = None  # of those on probation
    wanted: Slots | None = None  # what the slots hold once `coming` runs
    error: str | None = None
    done: tuple[JobStatus, ...] = ()  # answers to jobs, so that none is done twice
    config: Settings = {}
    config_rev: Count = 0
    config_problem: str | None = None


class Follower:
    """Follows desired states. `follow` and `work` run in one thread; `observe` is called from any.

    Args:
        store: Of the device.
        deployments: Gets and verifies artefacts.
        boot: Of the agent.
        activate: Makes stored artefacts run on probation.
        publish: Sends a report or a job's status; false when there is no connection.
        configure: Takes a remote configuration into use, and says what is wrong with it.
    """

    def __init__(
        self,
        store: SlotStore,
        deployments: Deployments,
        *,
        boot: str,
        activate: Callable[[Slots, Probation], None],
        publish: Callable[[Reported | JobStatus], object],
        configure: Callable[[Settings], str | None],
    ) -> None:
        self._store, self._deployments, self._boot = store, deployments, boot
        self._activate, self._publish, self._configure = activate, publish, configure
        self._path = store.folder / _NAME
        self._lock = threading.Lock()
        self._seq = 0
        self._memory = _read(self._path)
        state = self._memory.state
        if state in ("downloading", "verifying"):  # the retained desired state begins it again
            state = "idle"
        version = self._memory.version
        if state == "probation" and store.probation is None:  # cut before the switch, at the commit, or going back
            done = store.active == self._memory.wanted
            state, version = ("active", self._memory.coming) if done else ("idle", version)
        self._keep(starts=self._memory.starts + 1, state=state, version=version)

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

    def configure_again(self) -> None:
        """Take what was configured before the start into use."""
        problem = self._configure(self._memory.config)
        if problem != self._memory.config_problem:
            self._keep(config_problem=problem)

    def follow(self, desired: Desired) -> None:
        """Do what a desired state says, unless it is old or decided."""
        if desired.rev < self._memory.rev:
            return
        if (desired.config_rev, desired.config) != (self._memory.config_rev, self._memory.config):
            problem = self._configure(desired.config)
            self._keep(config=desired.config, config_rev=desired.config_rev, config_problem=problem)
        if desired.rev == self._memory.rev and self._memory.state != "idle":
            self.report()
            return
        self._keep(rev=desired.rev, job=desired.job, state="idle", error=None)
        if desired.agent is not None:
            text = "NotSupportedError: Wanted another agent, found that this one cannot replace itself. Install it by hand."
            self._set("failed", error=text)
            return
        models = desired.models
        if models is None or self._slots_of(models) == self._store.active:
            pending = self._store.probation
            if models is not None:
                self._keep(version=models.version or None)
            self._set("active" if pending is None else "probation")
            return
        try:
            self._change(desired, models)
        except Exception as error:  # an engine's own too: the host must hear of it, or it waits in vain
            if self._deployments.stopping:
                return  # begun again after the start
            log.error("desired state %d cannot be reached: %s", desired.rev, error)
            self._set("failed", error=f"{type(error).__name__}: {error}"[:500])

    def observe(self, status: DeployStatus) -> None:
        """What became of what is on probation."""
        if self._memory.state != "probation":
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
                error=memory.error,
                config_rev=memory.config_rev,
                config_problem=memory.config_problem,
            )

    def _change(self, desired: Desired, models: Models) -> None:
        refs = [ref for ref in (models.head, models.whole) if ref is not None]
        total = sum(ref.size or 0 for ref in refs)
        self._set("downloading")
        floors: dict[str, int] = {}
        before = said = 0
        for ref in refs:

            def progress(here: int, before: int = before) -> None:
                nonlocal said
                if before + here - said >= max(total // 20, 1):
                    said = before + here
                    self.report(said, total)

            for line, floor in self._deployments.obtain(ref, progress).items():
                floors[line] = max(floor, floors.get(line, 0))
            before += ref.size or 0
        self._set("verifying")
        wanted = self._slots_of(models)
        first = wanted.head or wanted.whole or "0" * 64
        self._keep(coming=models.version or None, wanted=wanted, state="probation")
        self._activate(wanted, Probation(first, first[:16], 0, desired.probation_s, None, floors))
        self.report()

    def _slots_of(self, models: Models) -> Slots:
        return Slots(
            head=models.head.artefact if models.head else None, whole=models.whole.artefact if models.whole else None
        )

    def _set(self, state: State, *, error: str | None = None) -> None:
        self._keep(state=state, error=error)
        self.report()

    def _keep(self, **changes: object) -> None:
        with self._lock:
            self._memory = msgspec.structs.replace(self._memory, **changes)
            write_durably(self._path, msgspec.json.encode(self._memory))


def _read(path: Path) -> Memory:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("Wanted what this device remembers, found: %s, in %s. It follows the host anew.", error, path)
        return Memory()
