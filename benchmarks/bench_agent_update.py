"""Updates of the agent itself, cut everywhere and attacked: does a whole agent come up, does it ever run what nobody vouched for?

As `bench_ota`, for the agent's own slots, with its device-side parts and the launcher's choice in this process. The bundle is
as small as one can be (its agent only says its version), so that every one of its steps can be cut. Exact, no times; about
two minutes.
"""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.bench_ota import BOARD, BOOT, Cutter, PowerCut, tear
from benchmarks.update_rows import BadUpdates, refusal_rows, row
from device_profiles.errors import EdgeError
from edge_runtime.agent_bundle import LINE, AgentBundle, find_damage, this_platform
from edge_runtime.agent_options import Launched
from edge_runtime.agent_slots import AgentSlots
from edge_runtime.artefact import pack_artefact
from edge_runtime.deployments import Deployments
from edge_runtime.fetch import FetchOptions
from edge_runtime.gate import Gatekeeper, install_trust
from edge_runtime.launcher import choose
from edge_runtime.messages import ArtefactRef
from edge_runtime.self_update import SelfUpdate
from edge_runtime.slots import SlotStore
from orchestrator.agent_bundle import write_bundle
from orchestrator.artefact_server import ArtefactServer
from orchestrator.signing import first_trust, public_key, sign_artefact

TAMPERED = 200  # flipped bits of a signed .zip
EACH = 25  # attempts of every other kind
_SEED = 6
_CLI = 'def main():\n    print(\'{"version": "%d"}\')\n'


class Workshop:
    """Makes, signs and serves versions of a tiny agent, and devices that trust our key."""

    def __init__(self, folder: Path, server: ArtefactServer) -> None:
        self.folder, self._server = folder, server
        self.key, self.stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self._number = 0

    def new_state(self) -> Path:
        """A device's folder with our key set."""
        self._number += 1
        state = self.folder / f"state{self._number}"
        install_trust(state / "trust.json", first_trust([public_key(self.key, "ours")], 1))
        return state

    def make(self, counter: int, *, key: Ed25519PrivateKey | None = None, platform: str = "any") -> AgentBundle:
        """A version, signed."""
        self._number += 1
        files = {
            "device_profiles/version.py": b'__version__ = "%d"\n' % counter,
            "edge_runtime/__init__.py": b"",
            "edge_runtime/cli.py": (_CLI % counter).encode(),
            "edge_runtime/ballast.bin": random.Random(self._number).randbytes(150_000),
        }
        bundle = write_bundle(
            self.folder / f"bundle{self._number}", files, platform=platform, python=None, distributions={}
        )
        sign_artefact(bundle, [key or self.key], counter=counter)
        return bundle

    def serve(self, bundle: AgentBundle, archive: bytes | None = None) -> ArtefactRef:
        """Where a device fetches it."""
        packed = pack_artefact(bundle, self.folder / "packed.zip")
        if archive is not None:
            packed.write_bytes(archive)
        offer = self._server.offer(packed)
        return ArtefactRef(artefact=bundle.id, zip_sha256=offer.zip_sha256, size=offer.size, url=offer.url)


def update(state: Path, ref: ArtefactRef) -> None:
    """What an agent does when another one is wanted, from its state folder on."""
    gate = Gatekeeper(state, BOARD, unsigned=True)
    deployments = Deployments(
        SlotStore(state, gate.ask), gate, boot=BOOT, report=_ignore, activate=_ignore, fetch=FetchOptions(give_up_s=1.0)
    )
    updates = SelfUpdate(state, gate, Launched(arguments=("run",)))
    floors = updates.obtain(ref, deployments.download, _ignore)
    updates.switch(ref, rev=1, seconds=0.0, floors=floors, models_ran=True)


def _ignore(*_: object) -> None:
    """Nobody listens."""


def confirm(state: Path) -> None:
    """The launcher starts it, and it proves itself."""
    choose(AgentSlots(state))
    AgentSlots(state).commit()


def comes_up(state: Path, allowed: set[str]) -> str | None:
    """What is wrong with the agent that the launcher would start."""
    slots = AgentSlots(state)
    chosen = choose(slots)
    if chosen not in allowed:
        return f"{chosen} comes up"
    return find_damage(slots.folder(chosen), chosen)


def cuts(workshop: Workshop) -> tuple[int, list[str]]:
    """Cut one update, its first start and its commit at every operation, in turn; how many cuts, and what went wrong."""
    chance = random.Random(_SEED)
    old, new = workshop.make(1), workshop.make(2)
    prepared = workshop.new_state()
    update(prepared, workshop.serve(old))
    confirm(prepared)
    ref = workshop.serve(new)
    wrong: list[str] = []
    at = 0
    while True:
        at += 1
        state = workshop.folder / "cut"
        shutil.copytree(prepared, state)
        finished = False
        with Cutter(at).hooked(), contextlib.suppress(PowerCut):
            update(state, ref)
            confirm(state)
            finished = True
        if not finished:
            tear(state, chance)
        problem = comes_up(state, {old.id, new.id})
        if problem is None and AgentSlots(state).pointer.active != new.id:
            update(state, ref)  # the retained desired state begins it again
        confirm(state)
        problem = problem or comes_up(state, {new.id})
        if problem is None and AgentSlots(state).pointer.floors != {LINE: 2}:
            problem = f"floors {AgentSlots(state).pointer.floors}"
        if problem is not None:
            wrong.append(f"cut {at}: {problem}")
        shutil.rmtree(state)
        if finished:
            return at - 1, wrong


def tampered(workshop: Workshop) -> tuple[int, int, int]:
    """Flip bits of a signed .zip: how many were refused, harmless (the same content), and accepted with other content."""
    chance = random.Random(_SEED)
    bundle = workshop.make(1)
    archive = pack_artefact(bundle, workshop.folder / "whole.zip").read_bytes()
    refused = harmless = accepted = 0
    for _ in range(TAMPERED):
        data = bytearray(archive)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        state = workshop.new_state()
        try:
            update(state, workshop.serve(bundle, bytes(data)))
        except EdgeError:
            refused += choose(AgentSlots(state)) is None
        else:
            whole = comes_up(state, {bundle.id}) is None
            harmless, accepted = harmless + whole, accepted + (not whole)
        shutil.rmtree(state)
    return refused, harmless, accepted


def taker(workshop: Workshop) -> Callable[[AgentBundle], str | None]:
    """A device that has committed version 1000, as `refusal_rows` offers it updates."""
    state, good = workshop.new_state(), workshop.make(1000)
    update(state, workshop.serve(good))
    confirm(state)

    def take(bad: AgentBundle) -> str | None:
        try:
            update(state, workshop.serve(bad))
        except EdgeError as error:
            return type(error).__name__ if comes_up(state, {good.id}) is None else None
        return None

    return take


def _unsigned(workshop: Workshop) -> AgentBundle:
    bundle = workshop.make(2000)
    (bundle.folder / "manifest.sig").unlink()
    return bundle


def rows() -> list[dict[str, object]]:
    """All rows of this benchmark."""
    with (
        tempfile.TemporaryDirectory(prefix="headtail-agent.") as place,
        ArtefactServer(Path(place, "served")) as server,
    ):
        workshop = Workshop(Path(place), server)
        count, wrong = cuts(workshop)
        for line in wrong:
            print(line)
        what = (
            f"of {count} cuts before and after every block, fsync and rename of an update of the agent, unsynced blocks "
            "damaged: no whole, verified agent came up, or not resumed"
        )
        found = [row("agent_cuts", what, len(wrong), "cuts", 0)]
        refused, harmless, accepted = tampered(workshop)
        what = f"of {TAMPERED} flipped bits of an agent's signed .zip: other content accepted ({refused} refused, {harmless} changed no content)"
        found.append(row("agent_tampered", what, accepted, "updates", 0))
        foreign = "aarch64" if this_platform() == "x86-64" else "x86-64"
        kinds = (
            BadUpdates("agent_rolled_back", "RollbackError", lambda n: workshop.make(999 - n)),
            BadUpdates("agent_wrong_target", "WrongTargetError", lambda _: workshop.make(2000, platform=foreign)),
            BadUpdates("agent_wrong_key", "WrongKeyError", lambda _: workshop.make(2000, key=workshop.stranger)),
            BadUpdates("agent_unsigned", "UnsignedError", lambda _: _unsigned(workshop)),
        )
        return [*found, *refusal_rows(kinds, taker(workshop), each=EACH, of_what="agent")]


if __name__ == "__main__":
    for one in rows():
        print(one)
