"""Private keys and what is done with them: make, read, sign artefacts and key sets. Runs where the keys are: offline."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from device_profiles.errors import EdgeError
from edge_runtime.agent_bundle import LINE, AgentBundle
from edge_runtime.artefact import Artefact
from edge_runtime.durable import write_durably
from edge_runtime.signature import (
    SIGNATURE_NAME,
    PublicKey,
    Signature,
    SignatureFile,
    SignedTrust,
    Statement,
    Trust,
    TrustFile,
    check_trust,
    follow_rotations,
    parse_signature,
    parse_trust_file,
    statement_bytes,
    trust_bytes,
)

PASSPHRASE_VARIABLE = "HEADTAIL_KEY_PASSPHRASE"


class KeyFileError(EdgeError):
    """A key file cannot be read, or would be overwritten."""


class SigningError(EdgeError):
    """What is to be signed does not fit what was signed before."""


def make_key(path: Path, *, name: str, passphrase: bytes | None = None) -> PublicKey:
    """Make a private key at `path` (readable by its owner alone) and its public half beside it, `.pub`.

    Raises:
        KeyFileError: A file is there already: devices may trust it.
    """
    key = Ed25519PrivateKey.generate()
    lock: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    public = public_key(key, name)
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    path.with_suffix(".pub").write_bytes(msgspec.json.format(msgspec.json.encode(public)) + b"\n")
    return public


def write_private(path: Path, content: bytes) -> None:
    """Create a file that only its owner can read.

    Raises:
        KeyFileError: It exists already, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyFileError(
            f"Wanted to write a new key, found {path} there already. Keys are not replaced; choose another name."
        ) from error
    except OSError as error:
        raise KeyFileError(f"Wanted to write {path}, found: {error}.") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def public_key(key: Ed25519PrivateKey, name: str) -> PublicKey:
    """The public half, named."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return msgspec.convert({"name": name, "ed25519": raw.hex()}, PublicKey)


def read_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read a private key in PEM.

    Raises:
        KeyFileError: Not such a file, another kind of key, or the passphrase is missing or wrong.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase)
    except TypeError as error:
        word = "needs a passphrase" if passphrase is None else "has none"
        raise KeyFileError(f"Wanted the private key {path}, found that it {word} ({PASSPHRASE_VARIABLE}).") from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a key in PEM, or another passphrase"
        raise KeyFileError(f"Wanted a private key in PEM, found: {reason}, in {path}.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"Wanted an ed25519 key, found {type(key).__name__} in {path}. Make one: headtail keys new.")
    return key


def read_public(path: Path) -> PublicKey:
    """Read a `.pub` file.

    Raises:
        KeyFileError: Not such a file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=PublicKey)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"Wanted a public key of `headtail keys new`, found: {error}, in {path}.") from error


def sign_bytes(keys: Sequence[Ed25519PrivateKey], data: bytes) -> tuple[Signature, ...]:
    """Every key's signature over the same bytes."""
    return tuple(Signature(key=public_key(key, "key").id, ed25519=key.sign(data).hex()) for key in keys)


def sign_artefact(
    artefact: Artefact | AgentBundle,
    keys: Sequence[Ed25519PrivateKey],
    *,
    counter: int | None = None,
    floor: int | None = None,
    line: str | None = None,
    trust: TrustFile | None = None,
) -> SignatureFile:
    """Write `manifest.sig`, or add signatures to one that says the same.

    Args:
        artefact: A folder; its files were checked when it was opened.
        keys: Private keys.
        counter: Version; what the signature file that is there says, else the seconds since 1970.
        floor: Lowest version that may follow on a device; the counter when null.
        line: What versions are counted for; the model's name and role, or the agent's line, when null.
        trust: Its rotations go into the file, for devices that hold an older key set.

    Raises:
        SigningError: A floor above the counter, no key, or an artefact that is signed with another statement.
    """
    path = artefact.folder / SIGNATURE_NAME
    before = parse_signature(path.read_bytes()) if path.is_file() else None
    if before is not None and before.statement.artefact != artefact.id:
        before = None  # of what this folder held earlier
    statement = _statement(artefact, before, counter=counter, floor=floor, line=line)
    if not keys:
        raise SigningError("Wanted a key to sign with, found none. Give --key KEY.pem.")
    signatures = {one.key: one for one in (before.signatures if before else ())}
    signatures |= {one.key: one for one in sign_bytes(keys, statement_bytes(statement))}
    rotations = trust.versions[1:] if trust else (before.rotations if before else ())
    signed = SignatureFile(statement=statement, signatures=tuple(signatures.values()), rotations=rotations)
    write_durably(path, msgspec.json.encode(signed))
    return signed


def _statement(
    artefact: Artefact | AgentBundle,
    before: SignatureFile | None,
    *,
    counter: int | None,
    floor: int | None,
    line: str | None,
) -> Statement:
    if before is not None:
        old = before.statement
        for name, wanted, found in (
            ("counter", counter, old.counter),
            ("floor", floor, old.floor),
            ("line", line, old.line),
        ):
            if wanted not in (None, found):
                raise SigningError(
                    f"Wanted {name} {wanted}, found {found} in {artefact.folder / SIGNATURE_NAME}, which others have signed. "
                    "Remove that file to sign anew."
                )
        return old
    counter = int(time.time()) if counter is None else counter
    floor = counter if floor is None else floor
    if not 0 <= floor <= counter:
        raise SigningError(f"Wanted a floor of 0 to the counter {counter}, found {floor}.")
    line = line or _line_of(artefact)
    values = {"artefact": artefact.id, "line": line, "counter": counter, "floor": floor}
    try:
        return msgspec.convert(values, Statement)
    except msgspec.ValidationError as error:
        raise SigningError(f"Wanted a statement about {artefact.id[:16]}.., found: {error}.") from error


def _line_of(artefact: Artefact | AgentBundle) -> str:
    if isinstance(artefact, AgentBundle):
        return LINE
    said = artefact.manifest  # a head and the whole model that it was cut from do not replace each other
    return f"{said.model.name[:190]} {said.role}"


def first_trust(keys: Sequence[PublicKey], threshold: int) -> TrustFile:
    """The first key set: devices take it on the word of whoever enrols them.

    Raises:
        TrustError: As `check_trust`.
    """
    trust = _trust(1, keys, threshold)
    return TrustFile(versions=(SignedTrust(trust=trust),))


def rotate(
    before: TrustFile, keys: Sequence[PublicKey], threshold: int, signers: Sequence[Ed25519PrivateKey]
) -> TrustFile:
    """The next key set, signed by enough of the old keys and of the new ones.

    Raises:
        TrustError: Too few of either, or a set that cannot be satisfied.
    """
    trust = _trust(before.newest.version + 1, keys, threshold)
    signed = SignedTrust(trust=trust, signatures=sign_bytes(signers, trust_bytes(trust)))
    follow_rotations(before.newest, (signed,))
    return TrustFile(versions=(*before.versions, signed))


def _trust(version: int, keys: Sequence[PublicKey], threshold: int) -> Trust:
    try:
        trust = msgspec.convert(
            {"version": version, "threshold": threshold, "keys": msgspec.to_builtins(tuple(keys))}, Trust
        )
    except msgspec.ValidationError as error:
        raise SigningError(f"Wanted a key set, found: {error}.") from error
    check_trust(trust)
    return trust


def read_trust_file(path: Path) -> TrustFile:
    """Read a `trust.json`.

    Raises:
        KeyFileError: It cannot be read.
        TrustError: It is not valid.
    """
    try:
        return parse_trust_file(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"Wanted a trust file of `headtail keys trust`, found: {error}.") from error
