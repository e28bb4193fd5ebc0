"""Updates of a device, cut everywhere and attacked: does it resume, does it ever run what nobody vouched for?

The device's own parts run here without a broker: transfer, gate, self-test, slots. A cut is an exception that nothing
catches, raised before or after one of the operations that reach the disk; what was written since the last sync is then
damaged as a power cut may do, and the device starts again from its folder. Exact, no times; about two minutes.
"""

import contextlib
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from benchmarks.update_rows import BadUpdates, refusal_rows, row
from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact, pack_artefact, write_artefact
from edge_runtime.blocks import Block
from edge_runtime.deployments import Deployments
from edge_runtime.fetch import FetchOptions
from edge_runtime.freshness import open_freshness
from edge_runtime.gate import Gatekeeper, install_trust
from edge_runtime.manifest import Engine, Golden, Manifest, ModelInfo, TensorSpec, Tool
from edge_runtime.messages import BLOCK_BYTES, DeployStart, DeployStatus
from edge_runtime.slots import SlotStore
from edge_runtime.transfer import IncomingFile, block_count, missing_blocks
from orchestrator.artefact_server import ArtefactServer
from orchestrator.signing import first_trust, public_key, sign_artefact

BOARD = "linux-x86-64"
BOOT = "0" * 16
BLOCKS = 6
TAMPERED = 400  # flipped bits of a signed .zip
EACH = 50  # attempts of every other kind
_SEED = 6


class PowerCut(BaseException):
    """The power is gone. Not an Exception: nothing may catch it."""


class Cutter:
    """Counts what reaches the disk and cuts the power at one of these operations; `more` are functions of `os`."""

    def __init__(self, at: int | None, more: tuple[str, ...] = ()) -> None:
        self._at, self._more, self.count = at, more, 0
        self.armed = True

    def step(self) -> None:
        """One operation; raises at the chosen one and at everything after it."""
        if not self.armed:
            return
        self.count += 1
        if self._at is not None and self.count >= self._at:
            raise PowerCut

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Cut before and after every block, fsync, rename and replace."""

        def around(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                self.step()
                result = function(*arguments, **named)
                self.step()
                return result

            return call

        patches = [
            mock.patch("os.fsync", around(os.fsync)),
            mock.patch.object(Path, "rename", around(Path.rename)),
            mock.patch.object(Path, "replace", around(Path.replace)),
            mock.patch.object(IncomingFile, "add", around(IncomingFile.add)),
            *(mock.patch(f"os.{name}", around(getattr(os, name))) for name in self._more),
        ]
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield


class Device:
    """What an agent does with deployments, from its state folder on; made anew, it has started again."""

    def __init__(self, state: Path) -> None:
        self.said: list[DeployStatus] = []
        fresh = open_freshness(state, "mqtt://127.0.0.1")
        self.gate = Gatekeeper(state, BOARD, unsigned=True, fresh=fresh)
        self.store = SlotStore(state, self.gate.ask)
        self.deployments = Deployments(
            self.store,
            self.gate,
            boot=BOOT,
            report=self.said.append,
            activate=self.store.replace,
            fetch=FetchOptions(give_up_s=1.0),
        )

    def update(self, start: DeployStart, archive: bytes) -> DeployStatus:
        """Take an update over HTTP or, without a URL, in blocks; the last word on it."""
        self.deployments.begin(start)
        while self.said[-1].state == "receiving":
            for index in missing_blocks(self.said[-1].have, block_count(start.size)):
                self.deployments.add(
                    start.transfer, Block(index, archive[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
                )
        return self.said[-1]


def announce(
    archive: bytes, artefact: str, server: ArtefactServer | None = None, folder: Path | None = None
) -> DeployStart:
    """What the host would say of it."""
    digest = hashlib.sha256(archive).hexdigest()
    offer = None
    if server is not None and folder is not None:
        (folder / "offered.zip").write_bytes(archive)
        offer = server.offer(folder / "offered.zip")
    return DeployStart(
        boot=BOOT,
        transfer=digest[:16],
        artefact=artefact,
        zip_sha256=digest,
        size=len(archive),
        url=offer.url if offer else None,
        blocks_sha256=offer.blocks_sha256 if offer else None,
    )


class Workshop:
    """Makes and signs versions of a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self._number = 0

    def new_state(self) -> Path:
        """A device's folder with our key set."""
        self._number += 1
        state = self.folder / f"state{self._number}"
        install_trust(state / "trust.json", first_trust([public_key(self.key, "ours")], 1))
        return state

    def make(
        self, *, counter: int, key: Ed25519PrivateKey | None = None, target: str = BOARD, blocks: int = 0
    ) -> Artefact:
        """A version, signed."""
        self._number += 1
        x = np.arange(4, dtype="<f4")[np.newaxis]
        files = {"model.onnx": _add_one(), "golden/x": x.tobytes(), "golden/y": (x + 1).tobytes()}
        files["ballast"] = np.random.default_rng(self._number).bytes(blocks * BLOCK_BYTES + self._number)
        artefact = write_artefact(self.folder / f"artefact{self._number}", _manifest(target), files)
        sign_artefact(artefact, [key or self.key], counter=counter)
        return artefact

    def pack(self, artefact: Artefact) -> bytes:
        """Its .zip."""
        return pack_artefact(artefact, self.folder / "packed.zip").read_bytes()


def _add_one() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "add_one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _manifest(target: str) -> Manifest:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, engine_name=name, dtype="float32", shape=(1, 4))

    return Manifest(
        schema=1,
        tool=Tool(name="headtail", version="bench"),
        model=ModelInfo(name="add-one", source_sha256="0" * 64),
        role="whole",
        target=target,
        precision="fp32",
        engine=Engine(name="onnxruntime", built="1"),
        entry="model.onnx",
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        files=(),
        golden=(Golden(inputs=("golden/x",), expected=("golden/y",), compare="exact", produced_on="bench"),),
    )


def tear(state: Path, chance: random.Random) -> None:
    """What a power cut may do to blocks that no fsync has brought to the disk: zeros, in the file or in its hashes."""
    for path in (state / "tuf" / "metadata").rglob("*.json"):
        if chance.random() < 0.25 and path.exists():
            os.truncate(path, chance.choice((0, path.stat().st_size // 2)))
    for path in (state / "incoming").glob("*"):
        if path.suffix in (".part", ".have") and path.stat().st_size and chance.random() < 0.5:
            unit = BLOCK_BYTES if path.suffix == ".part" else 32
            at = chance.randrange(-(-path.stat().st_size // unit)) * unit
            with path.open("r+b") as stream:
                stream.seek(at)
                stream.write(bytes(min(unit, path.stat().st_size - at)))


def verdict(state: Path, allowed: set[str | None]) -> str | None:
    """What is wrong after a cut: the device must start, and run an allowed artefact that the gate lets pass."""
    try:
        device = Device(state)
        active = device.store.active.whole
        device.store.open(active)
    except (EdgeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None if active in allowed else f"{active} runs"


def cuts(
    workshop: Workshop,
    *,
    over_http: bool,
    equip: Callable[[Path, tuple[Artefact, ...]], None] = lambda *_: None,
    more: tuple[str, ...] = (),
) -> tuple[int, list[str]]:
    """Cut one update at every operation, in turn; the number of cuts and what went wrong.

    Args:
        workshop: Makes the versions.
        over_http: Else in blocks.
        equip: Called with the device's folder and the two versions before the first of them is taken.
        more: Functions of `os` that are cut at as well.
    """
    chance = random.Random(_SEED)
    old, new = workshop.make(counter=1), workshop.make(counter=2, blocks=BLOCKS)
    old_zip, new_zip = workshop.pack(old), workshop.pack(new)
    prepared = workshop.new_state()
    equip(prepared, (old, new))
    first = Device(prepared)
    if first.update(announce(old_zip, old.id), old_zip).state != "active":
        raise RuntimeError(f"the first version did not run: {first.said[-1]}")
    first.store.commit()
    wrong: list[str] = []
    at = 0
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ArtefactServer(workshop.folder / f"served{over_http}")) if over_http else None
        start = announce(new_zip, new.id, server, workshop.folder)
        while True:
            at += 1
            state = workshop.folder / "cut"
            shutil.copytree(prepared, state)
            cutter = Cutter(at, more)
            finished = False
            with cutter.hooked():
                try:
                    Device(state).update(start, new_zip)
                    finished = True
                except PowerCut:
                    pass
            if not finished:
                tear(state, chance)
            problem = verdict(state, {old.id, new.id})
            again = Device(state)
            last = again.update(start, new_zip)
            again.store.commit()
            if problem is None and (last.state not in ("active", "committed") or again.store.active.whole != new.id):
                problem = f"not resumed: {last.state} {last.error}"
            if problem is None:
                problem = verdict(state, {new.id})
            if problem is not None:
                wrong.append(f"cut {at}: {problem}")
            shutil.rmtree(state)
            if finished:
                return at - 1, wrong


def tampered(workshop: Workshop) -> tuple[int, int, int]:
    """Flip bits of a signed .zip: how many were refused, harmless (the same content), and accepted with other content."""
    chance = random.Random(_SEED)
    artefact = workshop.make(counter=1)
    archive = workshop.pack(artefact)
    refused = harmless = accepted = 0
    for _ in range(TAMPERED):
        data = bytearray(archive)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        state = workshop.new_state()
        device = Device(state)
        status = device.update(announce(bytes(data), artefact.id), bytes(data))
        if status.state == "failed" and device.store.active.whole is None:
            refused += 1
        elif (
            device.store.active.whole == artefact.id
            and open_artefact(state / "artefacts" / artefact.id).id == artefact.id
        ):
            harmless += 1
        else:
            accepted += 1
        shutil.rmtree(state)
    return refused, harmless, accepted


def taker(workshop: Workshop) -> Callable[[Artefact], str | None]:
    """A device that has committed version 1000, as `refusal_rows` offers it updates."""
    state = workshop.new_state()
    device = Device(state)
    good = workshop.make(counter=1000)
    archive = workshop.pack(good)
    device.update(announce(archive, good.id), archive)
    device.store.commit()

    def take(bad: Artefact) -> str | None:
        data = workshop.pack(bad)
        status = Device(state).update(announce(data, bad.id), data)
        return status.code if status.state == "failed" and SlotStore(state).active.whole == good.id else None

    return take


def unsigned(workshop: Workshop) -> Artefact:
    """An artefact without a signature."""
    artefact = workshop.make(counter=2000)
    (artefact.folder / "manifest.sig").unlink()
    return artefact


def rows() -> list[dict[str, object]]:
    """All rows of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="headtail-ota.") as folder:
        workshop = Workshop(Path(folder))
        found = []
        for name, over_http in (("cuts_mqtt", False), ("cuts_http", True)):
            count, wrong = cuts(workshop, over_http=over_http)
            for line in wrong:
                print(line)
            transport = "HTTP ranges" if over_http else "blocks"
            what = (
                f"of {count} cuts before and after every block, fsync and rename of an update over {transport}, unsynced "
                "blocks damaged: not resumed, or something unverified ran"
            )
            found.append(row(name, what, len(wrong), "cuts", 0))
        refused, harmless, accepted = tampered(workshop)
        what = f"of {TAMPERED} flipped bits of a signed .zip: other content accepted ({refused} refused, {harmless} changed no content)"
        found.append(row("tampered", what, accepted, "updates", 0))
        others = ("rpi-5", "linux-aarch64")
        kinds = (
            BadUpdates("rolled_back", "RollbackError", lambda n: workshop.make(counter=999 - n)),
            BadUpdates("wrong_target", "WrongTargetError", lambda n: workshop.make(counter=2000, target=others[n % 2])),
            BadUpdates("wrong_key", "WrongKeyError", lambda _: workshop.make(counter=2000, key=workshop.stranger)),
            BadUpdates("unsigned", "UnsignedError", lambda _: unsigned(workshop)),
        )
        return [*found, *refusal_rows(kinds, taker(workshop), each=EACH, of_what="model")]


if __name__ == "__main__":
    for one in rows():
        print(one)
