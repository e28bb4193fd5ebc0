"""Take a version only when fresh TUF metadata of the fleet lists it: nobody can withhold updates unseen, or mix old and new.

A device that holds an anchor (a root and where the metadata is) asks before it accepts anything: on a desired state, on a
deployment, on being told to go back. What was accepted runs on without asking, also when the metadata cannot be reached.
Needs `tuf`, imported at the first question.
"""

import datetime
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.durable import write_durably
from edge_runtime.fetch import FetchOptions, fetch_options
from edge_runtime.signature import Statement

log = logging.getLogger(__name__)
SIGNED_AT = "x-headtail-signed"  # a field of the timestamp: when the host signed it
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
FOLDER = "tuf"
_ANCHOR_NAME = "anchor.json"
_METADATA = "metadata"
_MAX_ANCHOR_BYTES = 1 << 20
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 4.0


class FreshnessError(EdgeError):
    """A version that the fleet's update metadata does not vouch for now may not be taken."""


class FrozenError(FreshnessError):
    """The metadata has expired: somebody withholds newer metadata, or nobody has signed it anew."""


class ClockError(FreshnessError):
    """This device's clock is behind the fleet's, so that nothing can be seen to expire."""


class MetadataRollbackError(FreshnessError):
    """Older metadata than this device has seen."""


class MetadataMismatchError(FreshnessError):
    """Metadata files that do not belong together, or were changed."""


class MetadataSignatureError(FreshnessError):
    """Metadata without enough signatures of the keys that may sign it."""


class MetadataUnreachableError(FreshnessError):
    """The metadata cannot be had."""


class UnlistedError(FreshnessError):
    """The fleet's targets do not list this version (any more)."""


class TargetMismatchError(FreshnessError):
    """The fleet's targets list another statement about this artefact."""


class AnchorError(FreshnessError):
    """The root that this device was given is damaged."""


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device is given when it enrols."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^?#]+$", max_length=500)]  # of the folder with the metadata
    root: Annotated[str, msgspec.Meta(max_length=256 << 10)]  # a root, as it lies there; newer ones follow from it


def install_anchor(state: Path, anchor: Anchor) -> None:
    """Trust this root from now on; what was seen under another one is forgotten."""
    folder = state / FOLDER
    try:
        before = _read_anchor(folder / _ANCHOR_NAME)
    except AnchorError:
        before = None
    if before is None or before.root != anchor.root:
        shutil.rmtree(folder / _METADATA, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / _ANCHOR_NAME, msgspec.json.encode(anchor))


def read_root(path: Path, url: str) -> Anchor:
    """An anchor from a root file.

    Raises:
        AnchorError: The file cannot be read, or the URL is none.
    """
    try:
        return msgspec.convert({"url": url, "root": path.read_text(encoding="utf-8")}, Anchor)
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise AnchorError(f"Wanted N.root.json of `headtail keys root` and a URL, found: {error}.") from error


class Freshness:
    """Asks the fleet's TUF repository about versions.

    Args:
        state: The device's state folder.
        fetch: TLS, and how long to try.
        clock: Tells the time.
    """

    def __init__(
        self,
        state: Path,
        fetch: FetchOptions,
        *,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
    ) -> None:
        self._folder, self._fetch, self._clock = state / FOLDER, fetch, clock

    def check(self, statement: Statement) -> None:
        """Nothing when fresh metadata lists this statement.

        Raises:
            FreshnessError: One of its subclasses says why not.
            MissingDependencyError: `tuf` is not installed.
        """
        anchor = _read_anchor(self._folder / _ANCHOR_NAME)
        if anchor is None:
            raise AnchorError(f"Wanted this device's root in {self._folder}, found none. Enrol it again.")
        try:
            from edge_runtime.tuf_updater import check_listed
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"Wanted {error.name} to check the fleet's update metadata, found none. Install it: pip install 'headtail[tuf]'."
            ) from error
        end, pause_s = time.monotonic() + self._fetch.give_up_s, _FIRST_PAUSE_S
        while True:
            try:
                return check_listed(statement, anchor, self._folder / _METADATA, self._fetch.tls, self._clock())
            except MetadataUnreachableError as error:  # a server that is started again costs time and nothing else
                if time.monotonic() + pause_s > end:
                    raise
                log.info("%s", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def open_freshness(state: Path, broker: str) -> Callable[[Statement], None] | None:
    """`Freshness.check` of this device, with the certificates of its broker's URL; null when it was given no root."""
    return Freshness(state, fetch_options(broker)).check if (state / FOLDER / _ANCHOR_NAME).exists() else None


def _read_anchor(path: Path) -> Anchor | None:
    try:
        with path.open("rb") as stream:
            return msgspec.json.decode(stream.read(_MAX_ANCHOR_BYTES), type=Anchor)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnchorError(f"Wanted this device's root, found: {error}, in {path}. Enrol it again.") from error
