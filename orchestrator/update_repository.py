"""The fleet's TUF repository where its keys are: root and targets, signed offline by a threshold of the key set's holders.

A target is the statement that `manifest.sig` carries about one artefact, under the artefact's id: whoever signs the targets
says which versions a device may take at all. The host (`orchestrator.fleet.freshness`) adds snapshot and timestamp with a key
of its own. The folder holds every `N.root.json` and the newest `N.targets.json`; the last of each may wait for more signatures.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, Role, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError

from device_profiles.errors import EdgeError
from edge_runtime.durable import write_durably
from edge_runtime.signature import PublicKey, Statement, Trust, statement_bytes

ROOT_DAYS = 730
TARGETS_DAYS = 365
_KEPT = 8  # versions of targets: the newest may be incomplete
_RENEW_DAYS = 180  # what is left when signing anew is due
_OFFLINE, _ONLINE = ("root", "targets"), ("snapshot", "timestamp")


class UpdateRepositoryError(EdgeError):
    """The TUF repository cannot be used, or would not be valid."""


@dataclass(frozen=True)
class Progress:
    """One file of the repository and who has signed it."""

    name: str
    version: int
    expires: datetime.datetime
    signed: int
    threshold: int
    complete: bool
    statements: int = 0  # in targets


class UpdateRepository:
    """The repository in a folder; every change is written before a method returns.

    Args:
        folder: Made with the first root.
        now: The time; that of this machine when null.
    """

    def __init__(self, folder: Path, *, now: datetime.datetime | None = None) -> None:
        self.folder = folder
        self._now = (now or datetime.datetime.now(datetime.timezone.utc)).replace(microsecond=0)

    def update_root(self, trust: Trust, online: PublicKey | None, keys: Sequence[Ed25519PrivateKey]) -> list[Progress]:
        """Bring root and targets in line with a key set and sign them; nothing new is made where only a signature lacks.

        A new key set needs the signatures of the old one's threshold and of its own.

        Args:
            trust: Its keys and threshold become those of root and targets.
            online: The host's key for snapshot and timestamp; that of the root before when null.
            keys: Private keys of holders, old and new.

        Returns:
            How far root and targets are.

        Raises:
            UpdateRepositoryError: No online key for the first root, a signer that is in neither key set, a damaged file.
        """
        roots = self._roots()
        before = roots[-1] if roots else None
        wanted = self._wanted_root(trust, online, before)
        due = before is None or before.signed.expires - self._now < datetime.timedelta(days=_RENEW_DAYS)
        changed = before is None or before.signed.keys != wanted.keys or before.signed.roles != wanted.roles
        if changed or due:
            if before is not None and is_complete_root(before, roots[-2].signed if len(roots) > 1 else None):
                wanted.version = before.signed.version + 1
            elif before is not None:  # nobody has seen it yet
                wanted.version = before.signed.version
                roots = roots[:-1]
            roots.append(Metadata(wanted))
        newest, previous = roots[-1], roots[-2].signed if len(roots) > 1 else None
        self._sign(newest, keys, {*_ids(newest.signed), *(_ids(previous) if previous else ())})
        self._write(f"{newest.signed.version}.root.json", newest)
        holders = newest.signed.roles["targets"].keyids
        staying = [key for key in keys if _tuf_key_of(key).keyid in holders]
        self._sign_targets(newest.signed, staying, self._targets(), anew=changed)
        return self.progress()

    def list_statement(self, statement: Statement, keys: Sequence[Ed25519PrivateKey]) -> list[Progress]:
        """Make a statement a target and sign the targets; the same one again only adds signatures.

        Raises:
            UpdateRepositoryError: No root yet, a signer that is not of the key set, or another statement of this artefact.
        """
        root, targets = self._newest_root(), self._targets()
        content = statement_bytes(statement)
        made = TargetFile.from_data(statement.artefact, content, ["sha256"])
        made.unrecognized_fields["custom"] = {"line": statement.line, "counter": statement.counter}
        there = targets.signed.targets.get(statement.artefact)
        anew = there is None or there.hashes != made.hashes
        if anew:
            targets.signed.targets[statement.artefact] = made
        self._sign_targets(root, keys, targets, anew=anew)
        return self.progress()

    def withdraw(self, artefact: str, keys: Sequence[Ed25519PrivateKey]) -> list[Progress]:
        """Take an artefact out of the targets: from the next refresh on no device takes it, whatever its floor.

        Raises:
            UpdateRepositoryError: Not exactly one target whose id begins so, or as `list_statement`.
        """
        root, targets = self._newest_root(), self._targets()
        found = [one for one in targets.signed.targets if one.startswith(artefact)]
        if len(found) != 1:
            raise UpdateRepositoryError(f"Wanted one listed artefact {artefact[:64]!r}.., found {len(found)}.")
        del targets.signed.targets[found[0]]
        self._sign_targets(root, keys, targets, anew=True)
        return self.progress()

    def progress(self) -> list[Progress]:
        """How far the newest root and the targets are."""
        roots, targets = self._roots(), self._targets()
        root = roots[-1]
        previous = roots[-2].signed if len(roots) > 1 else None
        by_root = root.signed.get_root_verification_result(previous, root.signed_bytes, root.signatures)
        by_targets = root.signed.get_verification_result("targets", targets.signed_bytes, targets.signatures)
        needed = root.signed.roles["root"].threshold
        return [
            Progress("root", root.signed.version, root.signed.expires, len(by_root.signed), needed, by_root.verified),
            Progress(
                "targets",
                targets.signed.version,
                targets.signed.expires,
                len(by_targets.signed),
                needed,
                by_targets.verified,
                len(targets.signed.targets),
            ),
        ]

    def newest_root(self) -> bytes:
        """The newest root that is complete: what a device is given to begin with.

        Raises:
            UpdateRepositoryError: None is.
        """
        roots = self._roots()
        befores = [None, *(one.signed for one in roots)]
        complete = [root for root, before in zip(roots, befores, strict=False) if is_complete_root(root, before)]
        if not complete:
            raise UpdateRepositoryError(
                f"Wanted a root with enough signatures, found none in {self.folder}. Let more holders sign: headtail keys root."
            )
        return (self.folder / f"{complete[-1].signed.version}.root.json").read_bytes()

    def _wanted_root(self, trust: Trust, online: PublicKey | None, before: "Metadata[Root] | None") -> Root:
        if online is None and before is None:
            raise UpdateRepositoryError(
                "Wanted the host's online key for a first root, found none. Give --online KEY.pub."
            )
        offline = [_tuf_key(key) for key in trust.keys]
        held: list[Key]
        if online is not None:
            held = [_tuf_key(online)]
        else:
            assert before is not None
            held = [before.signed.keys[one] for one in before.signed.roles["timestamp"].keyids]
        if {key.keyid for key in held} & {key.keyid for key in offline}:
            raise UpdateRepositoryError(
                "Wanted an online key that signs nothing else, found one of the key set. Make another: headtail keys new."
            )
        roles = {name: Role([key.keyid for key in offline], trust.threshold) for name in _OFFLINE}
        roles |= {name: Role([key.keyid for key in held], 1) for name in _ONLINE}
        return Root(
            version=1,
            expires=self._now + datetime.timedelta(days=ROOT_DAYS),
            keys={key.keyid: key for key in (*offline, *held)},
            roles=roles,
            consistent_snapshot=True,
        )

    def _sign_targets(
        self, root: Root, keys: Sequence[Ed25519PrivateKey], targets: "Metadata[Targets]", *, anew: bool
    ) -> None:
        there = bool(targets_files(self.folder))
        due = targets.signed.expires - self._now < datetime.timedelta(days=_RENEW_DAYS)
        if anew or due:
            targets.signed.version += 1 if there else 0
            targets.signed.expires = self._now + datetime.timedelta(days=TARGETS_DAYS)
            targets.signatures.clear()
        self._sign(targets, keys, set(root.roles["targets"].keyids))
        self._write(f"{targets.signed.version}.targets.json", targets)
        for path in targets_files(self.folder)[_KEPT:]:
            path.unlink(missing_ok=True)

    def _sign(
        self, metadata: "Metadata[Root] | Metadata[Targets]", keys: Sequence[Ed25519PrivateKey], allowed: set[str]
    ) -> None:
        for key in keys:
            signer = CryptoSigner(key, _tuf_key_of(key))
            if signer.public_key.keyid not in allowed:
                raise UpdateRepositoryError(
                    f"Wanted signers of the key set, found the key {signer.public_key.keyid[:16]}.., which is not in it."
                )
            metadata.sign(signer, append=True)

    def _roots(self) -> "list[Metadata[Root]]":
        return read_roots(self.folder)

    def _newest_root(self) -> Root:
        roots = self._roots()
        if not roots:
            raise UpdateRepositoryError(
                f"Wanted a TUF repository, found no root in {self.folder}. Make it: headtail keys root {self.folder}."
            )
        return roots[-1].signed

    def _targets(self) -> "Metadata[Targets]":
        found = targets_files(self.folder)
        if not found:
            return Metadata(Targets(version=1, expires=self._now + datetime.timedelta(days=TARGETS_DAYS)))
        return read_targets(found[0])

    def _write(self, name: str, metadata: "Metadata[Root] | Metadata[Targets]") -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(self.folder / name, metadata.to_bytes())
        except OSError as error:
            raise UpdateRepositoryError(f"Wanted to write {self.folder / name}, found: {error}.") from error


def read_roots(folder: Path) -> "list[Metadata[Root]]":
    """Every root of a folder, oldest first; one that lacks ends the list.

    Raises:
        UpdateRepositoryError: A file that is no root.
    """
    roots: list[Metadata[Root]] = []
    while (path := folder / f"{len(roots) + 1}.root.json").is_file():
        try:
            roots.append(Metadata[Root].from_bytes(path.read_bytes()))
            version = roots[-1].signed.version if isinstance(roots[-1].signed, Root) else 0
        except (DeserializationError, OSError) as error:
            raise UpdateRepositoryError(f"Wanted TUF's root metadata, found: {error}, in {path}.") from error
        if version != len(roots):
            raise UpdateRepositoryError(f"Wanted version {len(roots)} of a root, found another file in {path}.")
    return roots


def targets_files(folder: Path) -> list[Path]:
    """Every `N.targets.json` of a folder, the newest first."""
    return newest_first(folder, "targets")


def newest_first(folder: Path, role: str) -> list[Path]:
    """Every `N.ROLE.json` of a folder, the newest first."""
    found = [path for path in folder.glob(f"*.{role}.json") if path.name.split(".")[0].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split(".")[0]), reverse=True)


def read_targets(path: Path) -> "Metadata[Targets]":
    """Targets from a file.

    Raises:
        UpdateRepositoryError: No targets in it.
    """
    try:
        found = Metadata[Targets].from_bytes(path.read_bytes())
    except (DeserializationError, OSError) as error:
        raise UpdateRepositoryError(f"Wanted TUF's targets metadata, found: {error}, in {path}.") from error
    if not isinstance(found.signed, Targets):
        raise UpdateRepositoryError(f"Wanted TUF's targets metadata, found other metadata in {path}.")
    return found


def is_complete_root(root: "Metadata[Root]", before: Root | None) -> bool:
    """Whether enough of its own keys have signed it, and enough of those before."""
    try:
        return root.signed.get_root_verification_result(before, root.signed_bytes, root.signatures).verified
    except (ValueError, RepositoryError):
        return False


def is_signed(role: str, metadata: "Metadata[Targets]", root: Root) -> bool:
    """Whether enough of the role's keys have signed it."""
    try:
        root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        return False
    return True


def _ids(root: Root) -> list[str]:
    return root.roles["root"].keyids


def _tuf_key(key: PublicKey) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.ed25519)))


def _tuf_key_of(key: Ed25519PrivateKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.public_key())
