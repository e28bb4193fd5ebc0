"""Which artefacts may run on this device: those that trusted keys vouch for, made for its board, and not too old.

The key set lies in the state folder as `trust.json`. Without it, artefacts need no signature, which `Gatekeeper` allows
only to a device whose broker is on the same machine, or whose owner said so.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_profiles import BoardError, load_board
from device_profiles.errors import EdgeError
from edge_runtime.durable import write_durably
from edge_runtime.manifest import Manifest
from edge_runtime.signature import (
    SignedTrust,
    Statement,
    Trust,
    TrustError,
    TrustFile,
    UnsignedError,
    check_floor,
    check_statement,
    parse_signature,
    parse_trust_file,
)

log = logging.getLogger(__name__)
TRUST_NAME = "trust.json"
_MAX_TRUST_BYTES = 1 << 20


class WrongTargetError(EdgeError):
    """The artefact was made for another board."""


@dataclass(frozen=True)
class Passed:
    """What the gate found: the statement (null without a key set) and the key set to hold from now on."""

    statement: Statement | None
    trust: Trust | None


class Gatekeeper:
    """Holds the key set of one device.

    Args:
        folder: The state folder.
        board: The device's board id.
        unsigned: Whether artefacts may pass without a signature as long as no key set is there.
        fresh: Raises when the fleet does not vouch for a statement now; null where the device holds no TUF root.

    With a key set that cannot be read nothing may run, rather than everything; the agent itself stays reachable.
    """

    def __init__(
        self, folder: Path, board: str, *, unsigned: bool, fresh: Callable[[Statement], None] | None = None
    ) -> None:
        self._path = folder / TRUST_NAME
        self._board, self._unsigned, self._fresh = board, unsigned, fresh
        self.trust: Trust | None = None
        self._damage: TrustError | None = None
        try:
            self.trust = read_trust(self._path)
        except TrustError as error:
            log.error("%s", error)
            self._damage = error

    def ask(self, manifest: bytes, signature: bytes | None) -> Passed:
        """Whether an artefact with these manifest bytes may be opened; a `Gate` of `open_artefact`.

        Raises:
            SignatureError: One of its subclasses says why not.
        """
        return self.ask_for(hashlib.sha256(manifest).hexdigest(), signature)

    def ask_for(self, artefact: str, signature: bytes | None) -> Passed:
        """The same for something whose sha256 is known.

        Raises:
            SignatureError: One of its subclasses says why not.
        """
        if self._damage is not None:
            raise self._damage
        if self.trust is None:
            if not self._unsigned:
                raise UnsignedError(
                    f"Wanted a key set to check {artefact[:16]}.. with, found no {self._path}. "
                    "Enrol the device, or give it one: edge-agent trust FILE."
                )
            return Passed(None, None)
        return Passed(*check_statement(signature, artefact, self.trust))

    def check_version(self, passed: Passed, floors: dict[str, int]) -> None:
        """Refuse what is older than its line's floor, and what the fleet does not vouch for now.

        Raises:
            RollbackError: With both numbers.
            FreshnessError: On a device with a TUF root: one of its subclasses says why not.
            UnsignedError: On such a device, without a key set.
        """
        if passed.statement is not None:
            check_floor(passed.statement, floors)
        if self._fresh is not None:
            if passed.statement is None:
                raise UnsignedError(
                    f"Wanted a key set beside the TUF root, found no {self._path}. Give it one: edge-agent trust FILE."
                )
            self._fresh(passed.statement)

    def check_target(self, manifest: Manifest) -> None:
        """Refuse what was made for another kind of board.

        Raises:
            WrongTargetError: With both boards.
        """
        if not fits_board(manifest.target, self._board):
            raise WrongTargetError(
                f"Wanted an artefact for {self._board}, found one for {manifest.target}. Export it for this board, "
                "or start the agent with the --board that this is."
            )

    def hold(self, trust: Trust | None, signature: bytes | None = None) -> None:
        """Keep a newer key set, once what it signed was accepted; on the disk before anything relies on it."""
        if trust is None or self.trust is None or trust.version <= self.trust.version:
            return
        rotations = parse_signature(signature).rotations
        newest = next(one for one in rotations if one.trust.version == trust.version)
        install_trust(self._path, TrustFile(versions=(newest,)))
        log.warning("key set %d replaces %d", trust.version, self.trust.version)
        self.trust = trust


def fits_board(target: str, board: str) -> bool:
    """Whether an artefact for `target` may run on a device that says that it is `board`.

    Equal ids fit, a variant fits its family (rpi-4b-4gb an artefact for rpi-4b), and a generic board (linux-aarch64)
    fits those of its architecture, in both directions. Two particular boards do not fit each other.
    """
    if target == board or board.startswith(target + "-"):
        return True
    generic = ("linux-x86-64", "linux-aarch64")
    if target not in generic and board not in generic:
        return False
    try:
        return _architecture(target) == _architecture(board) is not None
    except BoardError:
        return False


def install_trust(path: Path, trust: TrustFile) -> None:
    """Write a key set in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, msgspec.json.encode(trust))


def _architecture(board: str) -> str | None:
    isa = load_board(board).isa or ""
    return next((name for name in ("aarch64", "x86-64") if name in isa), None)


def read_trust(path: Path) -> Trust | None:
    """The key set of a device; null when it has none.

    Raises:
        TrustError: The file cannot be read, or is not valid.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_TRUST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"Wanted the key set {path}, found: {error}.") from error
    return parse_trust_file(data).newest


__all__ = ["Gatekeeper", "Passed", "SignedTrust", "WrongTargetError", "fits_board", "install_trust", "read_trust"]
