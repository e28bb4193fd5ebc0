"""A fleet's TUF metadata attacked, and updates cut while it is refreshed: what does a device take?

The parts of `bench_ota`, with a root on the device and the fleet's metadata over real HTTP. Two holders must sign, the host has
the online key; attackers have the host's folder and, where a row says so, keys. Exact, no times; about a minute.
"""

import datetime
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Signed, Snapshot, Targets, Timestamp

from benchmarks.bench_ota import EACH, Device, Workshop, announce, cuts
from benchmarks.update_rows import row
from edge_runtime.artefact import Artefact
from edge_runtime.freshness import SIGNED_AT, TIME_FORMAT, Anchor, install_anchor
from edge_runtime.signature import SIGNATURE_NAME, Statement, parse_signature
from edge_runtime.slots import SlotStore
from orchestrator.artefact_server import ArtefactServer
from orchestrator.fleet.freshness import Publisher
from orchestrator.signing import first_trust, public_key
from orchestrator.update_repository import UpdateRepository, newest_first, targets_files

_DAY = datetime.timedelta(days=1)


class Host:
    """A repository and its published folder; the workshop's key is one of the two holders'."""

    def __init__(self, workshop: Workshop, folder: Path, url: str) -> None:
        self._workshop, self.folder, self.url = workshop, folder, url
        self.online, self.second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.holders = (workshop.key, self.second)
        self.repository = UpdateRepository(folder / "source")
        self.published = folder / "published"
        trust = first_trust(
            [public_key(key, name) for key, name in zip(self.holders, ("ours", "second"), strict=True)], 2
        )
        self.repository.update_root(trust.newest, public_key(self.online, "online"), self.holders)
        self._publisher = Publisher(folder / "source", self.published, self.online)

    def equip(self, state: Path, artefacts: tuple[Artefact, ...]) -> None:
        """List these versions and give the device the root."""
        for artefact in artefacts:
            self.list(statement_of(artefact))
        install_anchor(state, Anchor(url=self.url, root=self.repository.newest_root().decode()))

    def list(self, statement: Statement) -> None:
        """As the holders and the host do it."""
        self.repository.list_statement(statement, self.holders)
        self._publisher.keep()

    def sign(self, name: str, signed: Signed, key: Ed25519PrivateKey) -> bytes:
        """Publish metadata as somebody may who has the folder and this key."""
        made: Metadata[Signed] = Metadata(signed)
        made.sign(CryptoSigner(key))
        (self.published / name).write_bytes(data := made.to_bytes())
        return data

    def timestamp(self, snapshot: bytes, *, key: Ed25519PrivateKey | None = None, days: float = 1) -> None:
        """A newer timestamp of this snapshot."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        before = Metadata[Timestamp].from_bytes((self.published / "timestamp.json").read_bytes()).signed
        made = Timestamp(
            version=before.version + 1,
            expires=now + days * _DAY,
            snapshot_meta=MetaFile.from_data(_version(snapshot), snapshot, ["sha256"]),
            unrecognized_fields={SIGNED_AT: now.strftime(TIME_FORMAT)},
        )
        self.sign("timestamp.json", made, key or self.online)

    @property
    def snapshot(self) -> Path:
        """The newest one."""
        return newest_first(self.published, "snapshot")[0]

    def too_few(self) -> None:
        """Targets that one of two holders has signed, published with the online key."""
        targets = Metadata[Targets].from_bytes(targets_files(self.published)[0].read_bytes()).signed
        targets.version += 1
        data = self.sign(f"{targets.version}.targets.json", targets, self.holders[0])
        before = Metadata[Snapshot].from_bytes(self.snapshot.read_bytes()).signed
        before.version += 1
        before.meta = {"targets.json": MetaFile.from_data(targets.version, data, ["sha256"])}
        self.timestamp(self.sign(f"{before.version}.snapshot.json", before, self.online))


def _version(snapshot: bytes) -> int:
    return Metadata[Snapshot].from_bytes(snapshot).signed.version


def statement_of(artefact: Artefact) -> Statement:
    """What its manifest.sig says."""
    return parse_signature((artefact.folder / SIGNATURE_NAME).read_bytes()).statement


def refused(
    workshop: Workshop, url: str, published: Path, attack: Callable[[Host, Artefact, Path], None]
) -> dict[str, int]:
    """How many of `EACH` versions were refused with which error while the committed one runs on; "taken" for the others.

    Args:
        workshop: Makes the versions.
        url: Of the server.
        published: A link that the server follows.
        attack: Called with the host, a version that the device may take, and a copy of what was published before it was listed.
    """
    found: dict[str, int] = {}
    for number in range(EACH):
        with tempfile.TemporaryDirectory(dir=workshop.folder) as name:
            folder = Path(name)
            published.unlink(missing_ok=True)
            published.symlink_to(folder / "published")
            host, state = Host(workshop, folder, url), workshop.new_state()
            good, coming = workshop.make(counter=1 + number), workshop.make(counter=100 + number)
            host.equip(state, (good,))
            before = Path(shutil.copytree(host.published, folder / "before"))
            device = Device(state)
            device.gate.check_version(device.gate.ask_for(good.id, (good.folder / SIGNATURE_NAME).read_bytes()), {})
            device.store.activate(device.store.adopt(good))
            device.store.commit()
            attack(host, coming, before)
            archive = workshop.pack(coming)
            status = Device(state).update(announce(archive, coming.id), archive)
            safe = status.state == "failed" and SlotStore(state).active.whole == good.id
            code = str(status.code) if safe else "taken"
            found[code] = found.get(code, 0) + 1
            for used in (good.folder, coming.folder, state):
                shutil.rmtree(used, ignore_errors=True)  # the adopted one has moved
    return found


def _frozen(host: Host, coming: Artefact, _before: Path) -> None:
    host.list(statement_of(coming))
    host.timestamp(host.snapshot.read_bytes(), days=-0.01)


def _rolled_back(host: Host, coming: Artefact, before: Path) -> None:
    host.list(statement_of(coming))
    stale = sorted(before.glob("*.snapshot.json"))[-1]
    shutil.copy(stale, host.published)
    host.timestamp(stale.read_bytes())
    signed = Metadata[Timestamp].from_bytes((host.published / "timestamp.json").read_bytes()).signed
    signed.version = Metadata[Timestamp].from_bytes((before / "timestamp.json").read_bytes()).signed.version - 1
    host.sign("timestamp.json", signed, host.online)


def _mixed(host: Host, coming: Artefact, before: Path) -> None:
    host.list(statement_of(coming))
    host.snapshot.write_bytes(sorted(before.glob("*.snapshot.json"))[-1].read_bytes())


def _wrong_key(host: Host, coming: Artefact, _before: Path) -> None:
    host.list(statement_of(coming))
    host.timestamp(host.snapshot.read_bytes(), key=host.holders[0])


def _too_few(host: Host, coming: Artefact, _before: Path) -> None:
    host.list(statement_of(coming))
    host.too_few()


def _tampered(host: Host, coming: Artefact, _before: Path) -> None:
    said = statement_of(coming)
    host.list(Statement(artefact=said.artefact, line=said.line, counter=said.counter + 1, floor=said.floor))


ATTACKS: tuple[tuple[str, str, str, Callable[[Host, Artefact, Path], None]], ...] = (
    ("frozen", "an expired timestamp", "FrozenError", _frozen),
    (
        "rolled_back",
        "an older timestamp and snapshot, signed with the online key",
        "MetadataRollbackError",
        _rolled_back,
    ),
    ("mixed", "an older snapshot under the newest one's name", "MetadataMismatchError", _mixed),
    ("wrong_key", "a timestamp by one of the holders' keys", "MetadataSignatureError", _wrong_key),
    ("too_few", "targets by one of two holders and the online key", "MetadataSignatureError", _too_few),
    ("unlisted", "a signed version that is not listed", "UnlistedError", lambda *_: None),
    ("tampered", "another statement listed than the version has", "TargetMismatchError", _tampered),
)


def rows() -> list[dict[str, object]]:
    """All rows of this benchmark."""
    found = []
    with tempfile.TemporaryDirectory(prefix="headtail-tuf.") as name:
        folder = Path(name)
        workshop, link = Workshop(folder), folder / "published"
        with ArtefactServer(folder / "metadata-server", metadata=link) as server:
            for attack, words, code, act in ATTACKS:
                counts = refused(workshop, server.metadata_url, link, act)
                if set(counts) != {code}:
                    print(attack, counts)
                what = f"of {EACH} updates under {words}: refused as {code}, the old model running on"
                found.append(row(f"tuf_{attack}", what, 100 * counts.get(code, 0) / EACH, "%", 100))
            link.unlink()
            link.symlink_to(folder / "host" / "published")
            host = Host(workshop, folder / "host", server.metadata_url)
            count, wrong = cuts(workshop, over_http=True, equip=host.equip, more=("replace", "symlink"))
    for line in wrong:
        print(line)
    what = (
        f"of {count} cuts before and after every block, fsync, rename and link of an update and of the refresh of its metadata, unsynced "
        "blocks and any metadata torn: not resumed, or something unverified ran"
    )
    return [*found, row("tuf_cuts", what, len(wrong), "cuts", 0)]


if __name__ == "__main__":
    for one in rows():
        print(one)
