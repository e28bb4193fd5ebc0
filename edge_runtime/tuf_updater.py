"""python-tuf's client behind our HTTP connections and our errors. Imported by devices that hold a TUF root, when they ask."""

import datetime
import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_runtime.durable import sync
from edge_runtime.freshness import (
    SIGNED_AT,
    TIME_FORMAT,
    Anchor,
    AnchorError,
    ClockError,
    FreshnessError,
    FrozenError,
    MetadataMismatchError,
    MetadataRollbackError,
    MetadataSignatureError,
    MetadataUnreachableError,
    TargetMismatchError,
    UnlistedError,
)
from edge_runtime.signature import Statement, statement_bytes

_TIMEOUT_S = 10.0
_CHUNK_BYTES = 64 << 10
_SKEW = datetime.timedelta(minutes=5)
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CONFIG = UpdaterConfig(
    max_root_rotations=64, max_delegations=0, targets_max_length=4 << 20, snapshot_max_length=64 << 10
)


def check_listed(
    statement: Statement, anchor: Anchor, folder: Path, tls: ssl.SSLContext | None, now: datetime.datetime
) -> None:
    """Refresh the metadata, then find the statement among its targets.

    Args:
        statement: About the artefact that is to be taken.
        anchor: Of this device.
        folder: Metadata that was verified earlier; newer metadata goes there.
        tls: For https.
        now: This device's time; what expires is judged by the system's clock, as python-tuf does.

    Raises:
        FreshnessError: One of its subclasses says why not.
    """
    try:
        updater = _open(anchor, folder, tls)
        updater.refresh()
        target = updater.get_targetinfo(statement.artefact)
        for path in (*folder.glob("*.json"), folder / "root_history", folder):
            sync(path)  # or a power cut might take what tells a rollback
    except (exceptions.RepositoryError, exceptions.DownloadError) as error:
        raise _named(error, anchor.url, now) from error
    except OSError as error:
        raise FreshnessError(f"Wanted to keep metadata in {folder}, found: {error}. Is the disk full?") from error
    _check_clock(folder / "timestamp.json", now)
    if target is None:
        raise UnlistedError(
            f"Wanted {statement.artefact[:16]}.. among the fleet's targets, found it is not listed. "
            "Let the keys' holders list it: headtail sign --tuf."
        )
    try:
        target.verify_length_and_hashes(statement_bytes(statement))
    except exceptions.LengthOrHashMismatchError as error:
        raise TargetMismatchError(
            f"Wanted the statement about {statement.artefact[:16]}.. that the fleet's targets list, found another one "
            f"(version {statement.counter} of {statement.line!r}, floor {statement.floor}). List it: headtail sign --tuf."
        ) from error


def _open(anchor: Anchor, folder: Path, tls: ssl.SSLContext | None) -> Updater:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Updater(str(folder), anchor.url, fetcher=_Fetcher(tls), config=_CONFIG, bootstrap=anchor.root.encode())
    except (exceptions.RepositoryError, ValueError) as error:
        raise AnchorError(f"Wanted this device's root to be valid, found: {error}. Enrol it again.") from error


def _check_clock(path: Path, now: datetime.datetime) -> None:
    """Refuse a clock that is behind the moment when the host signed: with it nothing would ever expire."""
    signed = Metadata[Timestamp].from_bytes(path.read_bytes()).signed
    said = signed.unrecognized_fields.get(SIGNED_AT)
    try:
        at = datetime.datetime.strptime(str(said), TIME_FORMAT).replace(tzinfo=datetime.timezone.utc)
    except ValueError as error:
        raise MetadataMismatchError(
            f"Wanted the time of signing ({SIGNED_AT}) in the timestamp, found {str(said)[:40]!r}."
        ) from error
    if now < at - _SKEW:
        raise ClockError(
            f"Wanted this device's clock at or after {at:{TIME_FORMAT}}, when the fleet's timestamp was signed, found "
            f"{now:{TIME_FORMAT}}. Set the clock (NTP, or a battery for it): without it nothing is seen to expire."
        )


def _named(error: Exception, url: str, now: datetime.datetime) -> FreshnessError:
    """Our name for what python-tuf found."""
    found = f"{type(error).__name__}: {error}"
    if isinstance(error, exceptions.ExpiredMetadataError):
        return FrozenError(
            f"Wanted update metadata that is still good, found: {error} at {url} (this device's clock: {now:{TIME_FORMAT}}). "
            "Is the host's freshness service up, are root and targets signed anew, and is the clock right? "
            "Otherwise somebody withholds updates."
        )
    if isinstance(error, exceptions.UnsignedMetadataError):
        return MetadataSignatureError(
            f"Wanted metadata signed by the keys of the fleet's root, found: {error} at {url}."
        )
    if isinstance(error, exceptions.LengthOrHashMismatchError | exceptions.DownloadLengthMismatchError):
        return MetadataMismatchError(
            f"Wanted metadata files of one state of the fleet, found: {error} at {url}. Mixed, or changed on the way."
        )
    if isinstance(error, exceptions.BadVersionNumberError):
        return MetadataRollbackError(
            f"Wanted metadata at least as new as this device has seen, found: {error} at {url}. "
            "If the fleet's folder was restored from a backup, let the freshness service sign anew."
        )
    if isinstance(error, exceptions.DownloadError):
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code == _NOT_YET_VALID:
            return ClockError(
                f"Wanted a server certificate that is valid now, found that it is not valid yet on this device's clock "
                f"({now:{TIME_FORMAT}}). Set the clock."
            )
        return MetadataUnreachableError(
            f"Wanted the fleet's update metadata from {url}, found: {cause or found}. Without it no version is taken; "
            "what runs goes on."
        )
    return MetadataMismatchError(f"Wanted the fleet's update metadata from {url}, found: {found}.")


class _Fetcher(FetcherInterface):
    """GET over the connections that artefacts come over; one for each file."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            context = self._tls or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", parts.path)
            answer = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        if answer.status != 200:
            connection.close()
            raise exceptions.DownloadHTTPError(f"status {answer.status} for {parts.path}", answer.status)
        return _chunks(connection, answer)


def _chunks(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read(_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise exceptions.DownloadError(f"the connection broke: {error}") from error
    finally:
        connection.close()
