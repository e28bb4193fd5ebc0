"""Signed statements over artefacts: who vouches for one, which key set decides, and how a key set is replaced.

`manifest.sig` says: these keys vouch for the artefact with this id, as version `counter` of `line`; once it has proven
itself on a device, nothing below `floor` may follow it there. Signatures are ed25519 over canonical bytes behind a
prefix that names their purpose, so that a signature made for one purpose never serves another. Needs `cryptography`,
imported when the first signature is checked.
"""

import hashlib
from typing import Annotated, Literal

import msgspec

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.manifest import canonical_bytes
from edge_runtime.messages import Name, Sha256

SIGNATURE_NAME = "manifest.sig"
MAX_SIGNATURE_BYTES = 64 << 10
MAX_KEYS = 16
_MAX_ROTATIONS = 64
_STATEMENT_PREFIX = b"headtail statement v1\n"
_TRUST_PREFIX = b"headtail trust v1\n"

KeyBytes = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
SignatureBytes = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}$")]
Counter = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class SignatureError(EdgeError):
    """An artefact that nobody vouches for may not run."""


class UnsignedError(SignatureError):
    """No signature where one is wanted, or one that is no signature file."""


class WrongKeyError(SignatureError):
    """Signed by keys that are not trusted, or by fewer of the trusted ones than the threshold."""


class BadSignatureError(SignatureError):
    """A trusted key's signature does not fit: what was signed is not what is here."""


class RollbackError(SignatureError):
    """An older version than this device may go back to."""


class TrustError(SignatureError):
    """A key set that is not valid, or that does not follow from the one before."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that crosses a file here."""


class PublicKey(_Data, frozen=True, kw_only=True):
    """One ed25519 key; the name is for people."""

    name: Name
    ed25519: KeyBytes

    @property
    def id(self) -> str:
        """First 8 bytes of sha256 over the key, as hex."""
        return hashlib.sha256(bytes.fromhex(self.ed25519)).hexdigest()[:16]


class Signature(_Data, frozen=True, kw_only=True):
    """One key's signature."""

    key: KeyId
    ed25519: SignatureBytes


class Trust(_Data, frozen=True, kw_only=True):
    """The keys of which `threshold` must sign. A new version needs the old keys' threshold and its own."""

    v: Literal[1] = 1
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)]
    keys: Annotated[tuple[PublicKey, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]


class SignedTrust(_Data, frozen=True, kw_only=True):
    """A key set and who vouches for it."""

    trust: Trust
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=2 * MAX_KEYS)] = ()


class TrustFile(_Data, frozen=True, kw_only=True):
    """Content of `trust.json`: every version from the first a device may hold to the newest, oldest first."""

    versions: Annotated[tuple[SignedTrust, ...], msgspec.Meta(min_length=1, max_length=_MAX_ROTATIONS)]

    @property
    def newest(self) -> Trust:
        """The key set that decides."""
        return self.versions[-1].trust


class Statement(_Data, frozen=True, kw_only=True):
    """What is vouched for. `artefact` is the artefact's id, or the sha256 of an agent's wheel."""

    v: Literal[1] = 1
    artefact: Sha256
    line: Line  # versions of one line replace each other: the model's name and role
    counter: Counter  # of two versions of a line the newer has the higher one
    floor: Counter  # when this one has proven itself, a device never again takes a counter below


class SignatureFile(_Data, frozen=True, kw_only=True):
    """Content of `manifest.sig`; the rotations lead devices with an older key set to the one that signed."""

    statement: Statement
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MAX_KEYS)]
    rotations: Annotated[tuple[SignedTrust, ...], msgspec.Meta(max_length=_MAX_ROTATIONS)] = ()


def statement_bytes(statement: Statement) -> bytes:
    """What is signed for an artefact."""
    return _STATEMENT_PREFIX + canonical_bytes(statement)


def trust_bytes(trust: Trust) -> bytes:
    """What is signed for a key set."""
    return _TRUST_PREFIX + canonical_bytes(trust)


def parse_signature(data: bytes | None) -> SignatureFile:
    """Decode a `manifest.sig`.

    Raises:
        UnsignedError: None there, too large, or not a signature file.
    """
    if data is None:
        raise UnsignedError(f"Wanted a signed artefact, found no {SIGNATURE_NAME} in it. Sign it: `headtail sign`.")
    if len(data) > MAX_SIGNATURE_BYTES:
        raise UnsignedError(f"Wanted {SIGNATURE_NAME} within {MAX_SIGNATURE_BYTES} B, found {len(data)} B. Sign again.")
    try:
        return msgspec.json.decode(data, type=SignatureFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnsignedError(f"Wanted a {SIGNATURE_NAME}, found: {error}. Sign the artefact again.") from error


def parse_trust_file(data: bytes) -> TrustFile:
    """Decode a `trust.json` and check that each version follows from the one before.

    Raises:
        TrustError: Not such a file, or a version that its predecessor's keys do not vouch for.
    """
    try:
        found = msgspec.json.decode(data, type=TrustFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError(f"Wanted a trust file of `headtail keys`, found: {error}.") from error
    check_trust(found.versions[0].trust)
    follow_rotations(found.versions[0].trust, found.versions[1:])
    return found


def check_trust(trust: Trust) -> None:
    """Refuse a key set that could never be satisfied, or that one key could satisfy twice.

    Raises:
        TrustError: A key twice, or a threshold above the number of keys.
    """
    distinct = {key.ed25519 for key in trust.keys}
    if len(distinct) != len(trust.keys) or len({key.id for key in trust.keys}) != len(trust.keys):
        raise TrustError(f"Wanted each key once, found {[key.name for key in trust.keys]} with a key twice.")
    if trust.threshold > len(trust.keys):
        raise TrustError(f"Wanted a threshold of at most {len(trust.keys)} keys, found {trust.threshold}.")


def follow_rotations(trust: Trust, rotations: tuple[SignedTrust, ...]) -> Trust:
    """The newest key set that `trust` leads to; versions that are not newer are passed over.

    Raises:
        TrustError: A version left out, or one without the signatures of the keys before and of its own.
    """
    for rotation in rotations:
        following = rotation.trust
        if following.version <= trust.version:
            continue
        if following.version != trust.version + 1:
            raise TrustError(
                f"Wanted key set {trust.version + 1} after {trust.version}, found {following.version}. "
                "Sign with the whole trust file: headtail sign --trust."
            )
        check_trust(following)
        data = trust_bytes(following)
        try:
            check_signatures(trust, data, rotation.signatures)
            check_signatures(following, data, rotation.signatures)
        except SignatureError as error:
            raise TrustError(
                f"Wanted key set {following.version} signed by old and new keys, found: {error}"
            ) from error
        trust = following
    return trust


def check_signatures(trust: Trust, data: bytes, signatures: tuple[Signature, ...]) -> None:
    """Nothing when enough keys of the set have signed these bytes; every key counts once.

    Raises:
        WrongKeyError: Too few of the set's keys.
        BadSignatureError: A key of the set with a signature that does not fit.
    """
    keys = {key.id: key for key in trust.keys}
    valid: set[str] = set()
    for signature in signatures:
        key = keys.get(signature.key)
        if key is None:
            continue
        if not _fits(key, data, signature):
            raise BadSignatureError(
                f"Wanted the signature of {key.name} over what is here, found one over something else: edited, or damaged."
            )
        valid.add(key.id)
    if len(valid) < trust.threshold:
        raise WrongKeyError(
            f"Wanted signatures of {trust.threshold} of the keys {', '.join(key.name for key in trust.keys)} "
            f"(key set {trust.version}), found {len(valid)} of them among {len(signatures)}. "
            "Let more of their holders sign: `headtail sign`."
        )


def check_statement(data: bytes | None, artefact: str, trust: Trust) -> tuple[Statement, Trust]:
    """Check a signature file against the artefact that it came with.

    Args:
        data: The bytes of `manifest.sig`; null when there is none.
        artefact: Id that was computed from what is here.
        trust: The key set that is held now.

    Returns:
        The statement, and the key set that its rotations lead to: hold that one from now on.

    Raises:
        UnsignedError: No signature file.
        TrustError: Rotations that do not follow.
        WrongKeyError: Too few trusted keys.
        BadSignatureError: Signed, but for another artefact or with other content.
    """
    found = parse_signature(data)
    newest = follow_rotations(trust, found.rotations)
    check_signatures(newest, statement_bytes(found.statement), found.signatures)
    if found.statement.artefact != artefact:
        raise BadSignatureError(
            f"Wanted a signature of {artefact[:16]}.., found one of {found.statement.artefact[:16]}..: "
            "the manifest was changed after it was signed. Sign it again."
        )
    return found.statement, newest


def check_floor(statement: Statement, floors: dict[str, int]) -> None:
    """Refuse a version below the floor of its line.

    Raises:
        RollbackError: With both numbers.
    """
    floor = floors.get(statement.line, 0)
    if statement.counter < floor:
        raise RollbackError(
            f"Wanted version {floor} or newer of {statement.line!r}, found {statement.counter}: this device has moved on. "
            "Sign it again with a higher --counter if it is really to come back."
        )


def _fits(key: PublicKey, data: bytes, signature: Signature) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Wanted `cryptography` to check signatures, found none. Install it: pip install 'headtail[fleet-device]'."
        ) from error
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.ed25519)).verify(bytes.fromhex(signature.ed25519), data)
    except (InvalidSignature, ValueError):
        return False
    return True
