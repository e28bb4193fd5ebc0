"""Replace the agent by another version: get and verify its bundle, try it, put it into a slot, and judge it once it runs.

Order as for models: signature by trusted keys, then the machine and the version against the floor; then sizes and hashes;
then a trial in a process of its own. Only then may the launcher start it, on probation.
"""

import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.agent_bundle import (
    MAX_BUNDLE_FILES,
    AgentBundle,
    find_damage,
    misfit,
    open_bundle,
    parse_agent_manifest,
)
from edge_runtime.agent_options import Launched
from edge_runtime.agent_slots import AgentProbation, AgentSlots, running_slot
from edge_runtime.artefact import read_small, unpack_archive
from edge_runtime.gate import Gatekeeper, Passed, WrongTargetError
from edge_runtime.launcher import boot_command, plain_environment
from edge_runtime.messages import INSTALLED, ArtefactRef
from edge_runtime.signature import SIGNATURE_NAME, RollbackError, UnsignedError
from edge_runtime.transfer import IncomingFile, TransferError

log = logging.getLogger(__name__)
CHECK_S = 120.0

Download = Callable[[ArtefactRef, Callable[[int], None]], IncomingFile]


class AgentError(EdgeError):
    """Another agent does not run here."""


class NotSupportedError(EdgeError):
    """This agent cannot replace itself."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `edge-agent check` prints."""

    version: str
    problem: str | None = None


class SelfUpdate:
    """The agent's own slots, as the running agent sees them.

    Args:
        state: The state folder.
        gate: Says who may sign.
        launched: How this agent was started; null: not by `edge-agent run`, so it cannot replace itself.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        state: Path,
        gate: Gatekeeper,
        launched: Launched | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots, self._gate, self._launched, self._clock = AgentSlots(state), gate, launched, clock
        self._state = state
        self.running = running_slot(__file__)
        self.restart_wanted = False
        pending = self._slots.pointer.probation
        self._pending = pending if pending is not None and pending.artefact == self.running else None
        self._connected_since: float | None = None
        self._unwritten = ""  # why, as it was said

    @property
    def on_probation(self) -> bool:
        """Whether this agent has not proven itself yet."""
        return self._pending is not None

    def differs(self, ref: ArtefactRef) -> bool:
        """Whether another agent than the one that runs is wanted."""
        return wanted_agent(ref) != self.running

    def refusal(self, artefact: str, rev: int | None = None) -> str | None:
        """Why this agent did not prove itself here; null where another one was tried last, or for another revision."""
        last = self._slots.pointer.refused
        if last is None or last.artefact != artefact or rev not in (None, last.rev):
            return None
        return last.error

    def obtain(self, ref: ArtefactRef, download: Download, progress: Callable[[int], None]) -> dict[str, int]:
        """Have an agent in its slot, verified and tried; what the floors become once it is committed.

        Raises:
            EdgeError: It cannot be had, or may not run here.
        """
        if self._launched is None:
            raise NotSupportedError(
                "Wanted another agent, found that this one cannot replace itself: `edge-agent run` has not started it."
            )
        if ref.artefact == INSTALLED:
            self._check_installed()
            return {}
        stored = self._stored(ref.artefact)
        if stored is not None:
            return _floors(stored)
        incoming = download(ref, progress)
        archive = incoming.finish()
        try:
            bundle, passed = self._verified(archive, ref.artefact)
            self._try(bundle)
            self._gate.hold(passed.trust, read_small(bundle.folder, SIGNATURE_NAME))
            self._slots.adopt(bundle.folder, bundle.id)
        finally:
            shutil.rmtree(archive.parent, ignore_errors=True)
        return _floors(passed)

    def switch(self, ref: ArtefactRef, *, rev: int, seconds: float, floors: dict[str, int], models_ran: bool) -> None:
        """Let it run from the next start on, and ask for that start."""
        assert self._launched is not None
        wanted = wanted_agent(ref)
        probation = None
        if wanted is not None:  # the installed agent needs none: it ran here before
            probation = AgentProbation(
                artefact=wanted,
                rev=rev,
                seconds=seconds,
                confirm_s=seconds + self._launched.confirm_s,
                models_ran=models_ran,
                floors=floors,
            )
        self._slots.activate(wanted, probation)
        self.restart_wanted = True

    def judge(self, *, connected: bool, models_problem: str | None) -> bool:
        """Called from the agent's main loop; true when it has just proven itself. Not in time: the launcher ends it."""
        try:
            return self._judge(connected, models_problem)
        except OSError as error:
            if self._unwritten != str(error):
                self._unwritten = str(error)
                log.error("Wanted to keep what became of this agent, found: %s. It is tried again.", error)
            return False

    def _judge(self, connected: bool, models_problem: str | None) -> bool:
        pending = self._pending
        if pending is None:
            return False
        if models_problem is not None and pending.models_ran:
            self._slots.roll_back(f"AgentError: Wanted the models to run under it, found: {models_problem}")
            self._pending, self.restart_wanted = None, True
            return False
        if not connected:
            self._connected_since = None
        elif self._connected_since is None:
            self._connected_since = self._clock()
        elif self._clock() - self._connected_since >= pending.seconds:
            self._slots.commit()
            self._pending = None
            return True
        return False

    @property
    def problem(self) -> str | None:
        """Why another agent runs than should; null when all is well."""
        active = self._slots.pointer.active
        if active == self.running or self._launched is None or self.restart_wanted:
            return None
        return f"AgentError: Wanted the agent {(active or 'installed')[:16]}, found it damaged; another one runs."

    def _check_installed(self) -> None:
        floors = self._slots.pointer.floors
        if any(floors.values()):
            raise RollbackError(
                f"Wanted the agent that was installed, found the floors {floors}: this device has moved on. "
                "Sign with --floor 0 to keep that way open."
            )

    def _stored(self, artefact: str) -> Passed | None:
        """What the gate says of a bundle that lies in its slot; null when it must be fetched."""
        folder = self._slots.folder(artefact)
        if not folder.is_dir() or find_damage(folder, artefact) is not None:
            return None
        passed = self._gate.ask_for(artefact, read_small(folder, SIGNATURE_NAME))
        self._check(passed, artefact)
        return passed

    def _check(self, passed: Passed, artefact: str) -> None:
        if passed.statement is None:  # models may do without on a broker of one's own; code never does
            raise UnsignedError(
                f"Wanted a key set to check the agent {artefact[:16]}.. with, found none on this device. "
                "Enrol it, or give it one: edge-agent trust FILE."
            )
        self._gate.check_version(passed, self._slots.pointer.floors)

    def _verified(self, archive: Path, artefact: str) -> tuple[AgentBundle, Passed]:
        found: list[Passed] = []

        def gate(manifest: bytes, signature: bytes | None) -> None:
            passed = self._gate.ask(manifest, signature)
            reason = misfit(parse_agent_manifest(manifest))
            if reason is not None:
                raise WrongTargetError(f"{reason} Make one for it: headtail agent-bundle.")
            self._check(passed, artefact)
            found.append(passed)

        bundle = open_bundle(unpack_archive(archive, gate, max_files=MAX_BUNDLE_FILES))
        if bundle.id != artefact:
            raise TransferError(f"Wanted the agent {artefact[:16]}.., found {bundle.id[:16]}.. in the .zip.")
        return bundle, found[-1]

    def _try(self, bundle: AgentBundle) -> None:
        """Have the new agent compile itself, and say whether it understands this device's arguments and state.

        Raises:
            AgentError: It does not start, takes too long, or says no.
        """
        assert self._launched is not None
        words = boot_command(bundle.folder, ["check", "--state", str(self._state), "--", *self._launched.arguments])
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=plain_environment(),
                timeout=CHECK_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AgentError(f"Wanted the new agent to check itself, found: {error}") from error
        try:
            verdict = msgspec.json.decode(done.stdout[-4096:], type=Verdict)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:]
            raise AgentError(
                f"Wanted the new agent's word on itself, found exit status {done.returncode}: {said}"
            ) from error
        if verdict.problem is not None or verdict.version != bundle.manifest.version:
            said = verdict.problem or f"it calls itself {verdict.version}"
            raise AgentError(f"Wanted the agent {bundle.manifest.version} to run here, found: {said}")


def wanted_agent(ref: ArtefactRef) -> str | None:
    """The bundle that is wanted; null for the installed agent."""
    return None if ref.artefact == INSTALLED else ref.artefact


def _floors(passed: Passed) -> dict[str, int]:
    said = passed.statement
    return {} if said is None else {said.line: said.floor}
