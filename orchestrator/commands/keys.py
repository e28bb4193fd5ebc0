"""`headtail keys`: signing keys and the key sets that devices trust; `headtail sign`: vouch for an artefact."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.durable import write_durably
from edge_runtime.signature import PublicKey, Statement, Trust, TrustFile
from orchestrator import signing
from orchestrator.agent_bundle import open_any
from orchestrator.commands.output import print_json, print_table

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.update_repository import Progress


def new(key: Path, *, name: str | None = None, json: bool = False) -> None:
    """Make an ed25519 signing key; do it where the key stays, best on a machine without a network.

    A passphrase in the environment variable HEADTAIL_KEY_PASSPHRASE encrypts the file.

    Args:
        key: File of the private key; KEY.pub beside it is what others need.
        name: For people; the file's name when not given.
        json: Print JSON.
    """
    made = signing.make_key(key, name=name or key.stem, passphrase=passphrase())
    if json:
        print_json({"private": key, "public": key.with_suffix(".pub"), "id": made.id})
    else:
        kind = "encrypted" if passphrase() else "NOT encrypted"
        sys.stdout.write(f"{key} (private, {kind}), {key.with_suffix('.pub')} (public), id {made.id}\n")


def trust(*keys: Path, threshold: int = 1, out: Path = Path("trust.json"), json: bool = False) -> None:
    """Write the first key set: devices that hold it run what so many of its keys have signed.

    Args:
        keys: Public keys (.pub).
        threshold: How many of them must sign.
        out: The file to write; give it to `headtail pki init`, or to a device: `edge-agent trust`.
        json: Print JSON.
    """
    if out.exists():
        raise signing.KeyFileError(
            f"Wanted to write {out}, found it there. `headtail keys rotate` makes its successor."
        )
    made = signing.first_trust([signing.read_public(path) for path in keys], threshold)
    _write(made, out, json=json)


def rotate(
    trust: Path,
    *,
    add: list[Path] | None = None,
    remove: list[str] | None = None,
    threshold: int | None = None,
    key: list[Path] | None = None,
    json: bool = False,
) -> None:
    """Replace keys: write the next version of a trust file, signed by enough of the old keys and of the new ones.

    Devices follow when they meet an artefact signed with `headtail sign --trust`.

    Args:
        trust: The trust file; it is extended.
        add: Public keys (.pub) that join.
        remove: Names of keys that leave.
        threshold: How many must sign from now on; as before when not given.
        key: Private keys that sign the change.
        json: Print JSON.
    """
    before = signing.read_trust_file(trust)
    kept = [one for one in before.newest.keys if one.name not in (remove or [])]
    unknown = set(remove or []) - {one.name for one in before.newest.keys}
    if unknown:
        raise signing.SigningError(f"Wanted to remove {sorted(unknown)}, found no key of that name in {trust}.")
    keys: list[PublicKey] = [*kept, *map(signing.read_public, add or [])]
    signers = [signing.read_key(path, passphrase()) for path in key or []]
    _write(signing.rotate(before, keys, threshold or before.newest.threshold, signers), trust, json=json)


def show(trust: Path, *, json: bool = False) -> None:
    """Show the key set that a trust file leads to.

    Args:
        trust: The trust file.
        json: Print JSON.
    """
    _print(signing.read_trust_file(trust).newest, json=json)


def root(
    tuf: Path,
    *,
    trust: Path = Path("trust.json"),
    online: Path | None = None,
    key: list[Path] | None = None,
    json: bool = False,
) -> None:
    """Make the fleet's TUF repository, or bring it in line with a trust file, and sign its root and targets.

    Devices with this root take only versions that the repository lists (`headtail sign --tuf`), and notice when somebody
    withholds newer ones. After `headtail keys rotate` the new root needs enough of the old keys and of the new ones. Where
    several must sign, their holders may do so one after the other, each with this command.

    Args:
        tuf: The repository's folder, for `headtail fleet up --tuf`.
        trust: The trust file: its newest key set signs root and targets.
        online: Public key (.pub) of the host, for snapshot and timestamp; `headtail pki init` makes it. As before when not given.
        key: Private keys of holders.
        json: Print JSON.
    """
    from orchestrator.update_repository import UpdateRepository

    keys = [signing.read_key(path, passphrase()) for path in key or []]
    held = signing.read_trust_file(trust).newest
    public = signing.read_public(online) if online is not None else None
    _print_progress(UpdateRepository(tuf).update_root(held, public, keys), json=json)


def withdraw(tuf: Path, artefact: str, *, key: list[Path] | None = None, json: bool = False) -> None:
    """Take a version out of the fleet's TUF repository: no device takes it from then on, nor goes back to it.

    Args:
        tuf: The repository's folder.
        artefact: The artefact's id, or how it begins.
        key: Private keys of holders.
        json: Print JSON.
    """
    from orchestrator.update_repository import UpdateRepository

    keys = [signing.read_key(path, passphrase()) for path in key or []]
    _print_progress(UpdateRepository(tuf).withdraw(artefact, keys), json=json)


def sign(
    artefact: Path,
    *,
    key: list[Path] | None = None,
    counter: int | None = None,
    floor: int | None = None,
    line: str | None = None,
    trust: Path | None = None,
    tuf: Path | None = None,
    json: bool = False,
) -> None:
    """Vouch for an artefact: write its manifest.sig, or add a signature to it. The artefact keeps its id.

    Args:
        artefact: A folder that `headtail export`, `headtail split` or `headtail agent-bundle` wrote.
        key: Private keys; where several must sign, their holders may do so one after the other.
        counter: Version number, higher than that of the version before; the time in seconds when not given.
        floor: Lowest version that a device may go back to once this one has proven itself; the counter when not given.
        line: What versions are counted for; the model's name and the artefact's role when not given.
        trust: Trust file with rotations that devices in the field may not have seen.
        tuf: The fleet's TUF repository (`headtail keys root`): list the artefact there with the same keys.
        json: Print JSON.
    """
    if artefact.is_file():
        raise signing.SigningError(f"Wanted an artefact's folder to sign, found the file {artefact}. Sign, then pack.")
    opened = open_any(artefact)
    keys = [signing.read_key(path, passphrase()) for path in key or []]
    chain = signing.read_trust_file(trust) if trust is not None else None
    made = signing.sign_artefact(opened, keys, counter=counter, floor=floor, line=line, trust=chain)
    listed = _list(tuf, made.statement, keys)
    if json:
        print_json({"statement": made.statement, "keys": [one.key for one in made.signatures], "tuf": listed})
    else:
        said = made.statement
        sys.stdout.write(
            f"{said.artefact[:16]}.. is version {said.counter} of {said.line!r}, signed by {len(made.signatures)} key(s); "
            f"nothing below {said.floor} may follow it\n"
        )
        _print_progress(listed, json=False)


def passphrase() -> bytes | None:
    """What protects key files here; from the environment, so that it stands in no command line."""
    found = os.environ.get(signing.PASSPHRASE_VARIABLE)
    return found.encode() if found else None


def _list(tuf: Path | None, statement: Statement, keys: "Sequence[Ed25519PrivateKey]") -> "list[Progress]":
    if tuf is None:
        return []
    from orchestrator.update_repository import UpdateRepository

    return UpdateRepository(tuf).list_statement(statement, keys)


def _print_progress(found: "list[Progress]", *, json: bool) -> None:
    if json:
        print_json(found)
        return
    for one in found:
        word = "complete" if one.complete else "NOT complete: let more holders sign"
        listed = f", lists {one.statements} version(s)" if one.name == "targets" else ""
        sys.stdout.write(
            f"{one.name} {one.version}: {one.signed} signature(s), {one.threshold} needed, {word}{listed}; "
            f"good until {one.expires:%Y-%m-%d}\n"
        )


def _write(made: TrustFile, path: Path, *, json: bool) -> None:
    write_durably(path, msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    _print(made.newest, json=json)


def _print(trust: Trust, *, json: bool) -> None:
    if json:
        print_json(trust)
    else:
        title = f"Key set {trust.version}: {trust.threshold} of {len(trust.keys)} must sign"
        print_table(title, ("id", "name", "ed25519"), [(key.id, key.name, key.ed25519) for key in trust.keys])
