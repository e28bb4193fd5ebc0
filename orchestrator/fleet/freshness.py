"""The host's part of TUF: snapshot and timestamp, signed with the online key and signed again before they expire.

Roots and targets come from the folder that their offline holders sign (`orchestrator.update_repository`); what is complete
goes into the folder that the file server shows to devices. Versions of snapshot and timestamp are at least the seconds since
1970, so that a host that lost its folder rolls nobody back.
"""

import argparse
import datetime
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from device_profiles.errors import EdgeError
from edge_runtime.agent_bundle import AgentBundle
from edge_runtime.artefact import Artefact
from edge_runtime.durable import write_durably
from edge_runtime.ending import when_told_to_end
from edge_runtime.freshness import SIGNED_AT, TIME_FORMAT
from edge_runtime.json_log import set_up_logging
from edge_runtime.signature import SIGNATURE_NAME, Statement, parse_signature, statement_bytes
from orchestrator.fleet.files import METADATA_FOLDER
from orchestrator.signing import read_key
from orchestrator.update_repository import (
    UpdateRepositoryError,
    is_complete_root,
    is_signed,
    newest_first,
    read_roots,
    read_targets,
    targets_files,
)

log = logging.getLogger(__name__)
HOURS = 24.0
_LOOK_EVERY_S = 0.5
_KEPT = 8  # old versions of snapshot and targets, for devices that are in the middle of a refresh
_WARN_DAYS = 60  # before root or targets expire


class Publisher:
    """Keeps the published folder complete and fresh.

    Args:
        source: Of the offline holders.
        published: What devices see.
        key: The online key, as the root names it.
        hours: A timestamp is good for; it is signed again when half of that is over. A snapshot is good for 28 times as long.
        clock: Tells the time.
    """

    def __init__(
        self,
        source: Path,
        published: Path,
        key: Ed25519PrivateKey,
        *,
        hours: float = HOURS,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
    ) -> None:
        self._source, self._published, self._clock = source, published, clock
        self._signer = CryptoSigner(key)
        self._life = datetime.timedelta(hours=hours)
        self._seen: object = None
        self._due = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)

    def keep(self) -> bool:
        """Publish what has become complete and sign again what is due; true when a new timestamp came out of it.

        Raises:
            UpdateRepositoryError: No complete root, no complete targets, or this online key is not the root's.
        """
        seen, now = self._look(), self._clock().replace(microsecond=0)
        if seen == self._seen and now < self._due:
            return False
        self._published.mkdir(parents=True, exist_ok=True)
        root, targets, content = self._choose()
        self._publish_roots(root)
        write_durably(self._published / f"{targets.version}.targets.json", content)
        snapshot, anew = self._snapshot(root, targets, content, now)
        signed = self._timestamp(root, snapshot, now, anew=anew)
        self._seen = seen
        self._tidy()
        _warn(root, targets, now)
        return signed

    def _look(self) -> object:
        found = [(one.name, one.stat().st_mtime_ns, one.stat().st_size) for one in self._source.glob("*.json")]
        return sorted(found)

    def _choose(self) -> tuple[Root, Targets, bytes]:
        """The newest complete root for which there are complete targets: the holders', else those that were published.

        A root whose holders have not signed the targets yet waits, or devices would find nothing that it vouches for.
        """
        complete: list[Root] = []
        for one in read_roots(self._source):
            if not is_complete_root(one, complete[-1] if complete else None):
                break
            complete.append(one.signed)
        if not complete:
            raise UpdateRepositoryError(
                f"Wanted a root with enough signatures, found none in {self._source}. Let its holders sign: headtail keys root."
            )
        offered = [*targets_files(self._source), *targets_files(self._published)]
        found = [(read_targets(path), path) for path in offered]
        for root in reversed(complete):
            for targets, path in found:
                if is_signed("targets", targets, root):
                    return root, targets.signed, path.read_bytes()
        raise UpdateRepositoryError(
            f"Wanted targets with enough signatures of root {complete[-1].version}'s keys, found none in {self._source}. "
            "Let its holders sign: headtail keys root."
        )

    def _publish_roots(self, newest: Root) -> None:
        if self._signer.public_key.keyid not in newest.roles["timestamp"].keyids:
            raise UpdateRepositoryError(
                f"Wanted the online key that root {newest.version} names, found another one. "
                "Let the holders sign this one's public half: headtail keys root --online."
            )
        for version in range(1, newest.version + 1):
            name = f"{version}.root.json"
            if not (self._published / name).is_file():
                write_durably(self._published / name, (self._source / name).read_bytes())

    def _snapshot(self, root: Root, targets: Targets, content: bytes, now: datetime.datetime) -> tuple[bytes, bool]:
        """The snapshot of these targets, and whether it is a new one."""
        life = 28 * self._life
        wanted = {"targets.json": MetaFile.from_data(targets.version, content, ["sha256"])}
        newest = next(iter(newest_first(self._published, "snapshot")), None)
        before = None if newest is None else _read(newest, Snapshot)
        if (
            before is not None
            and before.signed.meta == wanted
            and self._holds("snapshot", before, root, now + life / 2)
        ):
            assert newest is not None
            return newest.read_bytes(), False
        version = _next_version(None if before is None else before.signed.version, now)
        made = Metadata(Snapshot(version=version, expires=now + life, meta=wanted))
        made.sign(self._signer)
        data = made.to_bytes()
        write_durably(self._published / f"{version}.snapshot.json", data)
        return data, True

    def _timestamp(self, root: Root, snapshot: bytes, now: datetime.datetime, *, anew: bool) -> bool:
        path = self._published / "timestamp.json"
        before = _read(path, Timestamp) if path.is_file() else None
        if before is not None and not anew and self._holds("timestamp", before, root, now + self._life / 2):
            self._due = before.signed.expires - self._life / 2
            return False
        meta = MetaFile.from_data(Metadata[Snapshot].from_bytes(snapshot).signed.version, snapshot, ["sha256"])
        version = _next_version(None if before is None else before.signed.version, now)
        more = {SIGNED_AT: now.strftime(TIME_FORMAT)}
        signed = Timestamp(version=version, expires=now + self._life, snapshot_meta=meta, unrecognized_fields=more)
        made = Metadata(signed)
        made.sign(self._signer)
        write_durably(path, made.to_bytes())
        self._due = signed.expires - self._life / 2
        log.info("timestamp %d of targets as of snapshot %d, good until %s", version, meta.version, signed.expires)
        return True

    def _holds(
        self, role: str, found: "Metadata[Snapshot] | Metadata[Timestamp]", root: Root, until: datetime.datetime
    ) -> bool:
        """Whether it is good until then, by a key that the root names now."""
        named = root.roles[role].keyids
        return found.signed.expires >= until and any(one in named for one in found.signatures)

    def _tidy(self) -> None:
        for role in ("snapshot", "targets"):
            for path in newest_first(self._published, role)[_KEPT:]:
                path.unlink(missing_ok=True)


def _next_version(before: int | None, now: datetime.datetime) -> int:
    return max(int(now.timestamp()), 1 if before is None else before + 1)


def _read(path: Path, role: "type[Snapshot] | type[Timestamp]") -> "Metadata | None":  # type: ignore[type-arg]
    """What was published; null where it is damaged: then it is made anew."""
    try:
        found: Metadata = Metadata.from_bytes(path.read_bytes())  # type: ignore[type-arg]
    except DeserializationError as error:
        log.error("Wanted %s of an earlier run, found: %s. It is made anew.", path, error)
        return None
    return found if isinstance(found.signed, role) else None


def _warn(root: Root, targets: Targets, now: datetime.datetime) -> None:
    for found in (root, targets):
        left = found.expires - now
        if left < datetime.timedelta(days=_WARN_DAYS):
            log.warning(
                "the %s expires in %d days, and with it every update: let its holders sign `headtail keys root`",
                found.type,
                left.days,
            )


def check_published(published: Path, artefacts: Sequence[Artefact | AgentBundle], *, wait_s: float = 10.0) -> None:
    """Nothing when devices will find these artefacts listed; the service is given some time to publish what is signed.

    Raises:
        UpdateRepositoryError: They are not listed: devices would refuse them.
        UnsignedError: One is not signed at all.
    """
    wanted = {one.id: _statement_of(one) for one in artefacts if one.manifest.role != "tail"}
    end = time.monotonic() + wait_s
    while True:
        newest = next(iter(targets_files(published)), None)
        listed = read_targets(newest).signed.targets if newest is not None else {}
        missing = [one for one, said in wanted.items() if one not in listed or not _says(listed[one], said)]
        if not missing:
            return
        if time.monotonic() > end:
            raise UpdateRepositoryError(
                f"Wanted {missing[0][:16]}.. as it is signed among the fleet's published targets, found it is not there: devices "
                "would refuse it. List it with enough keys: headtail sign ARTEFACT --key KEY.pem --tuf DIR."
            )
        time.sleep(_LOOK_EVERY_S)


def _statement_of(artefact: Artefact | AgentBundle) -> Statement:
    path = artefact.folder / SIGNATURE_NAME
    return parse_signature(path.read_bytes() if path.is_file() else None).statement


def _says(target: TargetFile, statement: Statement) -> bool:
    try:
        target.verify_length_and_hashes(statement_bytes(statement))
    except LengthOrHashMismatchError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep it fresh until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of `headtail keys root`")
    parser.add_argument("--folder", type=Path, required=True, help="the fleet's")
    parser.add_argument("--key", type=Path, required=True, help="the online key")
    parser.add_argument("--hours", type=float, default=HOURS, help="a timestamp is good for")
    parsed = parser.parse_args(arguments)
    set_up_logging("freshness", logging.INFO)
    stopped = threading.Event()
    when_told_to_end(stopped.set)
    key = read_key(parsed.key)
    publisher = Publisher(parsed.source, parsed.folder / METADATA_FOLDER, key, hours=parsed.hours)
    ready, said = False, ""
    while not stopped.is_set():
        try:
            publisher.keep()
            said = ""
            if not ready:
                ready = True
                sys.stdout.write("freshness ready\n")
                sys.stdout.flush()
        except (EdgeError, OSError) as error:  # once: it stays until the holders or the disk change
            if said != str(error):
                said = str(error)
                log.error("%s", error)
        stopped.wait(_LOOK_EVERY_S)


if __name__ == "__main__":
    main()
