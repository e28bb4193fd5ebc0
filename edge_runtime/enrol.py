"""Enrol a device: make its key here, prove with a single-use token that it may join, and keep the certificate.

A token is `<secret>.<fingerprint>`: the fingerprint is that of the fleet's CA, so that the device sends the secret to
nobody else. The private key never leaves the device.
"""

import hashlib
import http.client
import os
import re
import shutil
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.freshness import Anchor, install_anchor
from edge_runtime.gate import TRUST_NAME, install_trust
from edge_runtime.identity import Identity, Place, identity_folder
from edge_runtime.messages import Name, check_segment
from edge_runtime.signature import TrustFile, parse_trust_file

_TOKEN = re.compile(r"([A-Za-z0-9_-]{32,64})\.([0-9a-f]{64})\Z")
_MAX_ANSWER_BYTES = 256 << 10
_TIMEOUT_S = 20.0


class EnrolError(EdgeError):
    """The device could not join the fleet."""


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device sends."""

    secret: str
    device: Name
    tenant: Name
    request: str  # certificate request in PEM


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it gets."""

    certificate: str
    place: Place
    trust: TrustFile | None = None  # the key set whose signatures it shall accept
    anchor: Anchor | None = None  # the TUF root that it shall ask before it takes a version


def enrol(url: str, token: str, *, device: str, tenant: str, state: Path) -> Identity:
    """Join a fleet; what an earlier enrolment left is replaced once this one has succeeded.

    Args:
        url: https://host:port of `headtail pki serve`.
        token: Of `headtail pki token`; it is good once.
        device: The name to have.
        tenant: The fleet's.
        state: The device's state folder.

    Raises:
        EnrolError: Not a token, no such server, another CA than the token's, or refused.
    """
    check_segment("device", device)
    match = _TOKEN.match(token.strip())
    if match is None:  # what it is may be most of a secret
        raise EnrolError("Wanted a token of `headtail pki token`, found something else. Ask for a new one.")
    address = _address_of(url)
    ca = _fetch_ca(address, match[2])
    key_pem, request_pem = _make_request(device)
    question = EnrolRequest(secret=match[1], device=device, tenant=tenant, request=request_pem)
    answer = _ask(address, ca, question)
    identity = Identity(device=device, tenant=tenant, place=answer.place)
    content = {"ca.pem": ca.encode(), "device.pem": answer.certificate.encode(), "device.key": key_pem}
    _keep(identity_folder(state), {**content, "fleet.json": msgspec.json.encode(identity)})
    if answer.trust is not None:
        parse_trust_file(msgspec.json.encode(answer.trust))
        install_trust(state / TRUST_NAME, answer.trust)
    if answer.anchor is not None:
        install_anchor(state, answer.anchor)
    return identity


def _address_of(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", 443 if parts.port is None else parts.port
        secure = parts.scheme == "https"
    except ValueError:  # brackets or a port that are none
        host, port, secure = "", 0, False
    if not secure or not host or not host.isprintable() or " " in host or not port:
        raise EnrolError(
            f"Wanted https://host:port of `headtail pki serve`, found {url[:200]!r}. It prints its URL when it starts."
        )
    return host, port


def _fetch_ca(address: tuple[str, int], fingerprint: str) -> str:
    """The CA's certificate over a connection that proves nothing: the token's fingerprint does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        pem = _exchange(address, context, "GET", "/ca.pem", None).decode("ascii")
        if pem.count("-----BEGIN") != 1:
            raise ValueError("more than one certificate")
        der = ssl.PEM_cert_to_DER_cert(pem)
        found = hashlib.sha256(der).hexdigest()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EnrolError(f"Wanted the CA of {address[0]}:{address[1]}, found: {error}.") from error
    if found != fingerprint:
        raise EnrolError(
            f"Wanted the CA {fingerprint[:16]}.. that the token names, found {found[:16]}.. at {address[0]}:{address[1]}. "
            "Somebody else answers there, or the token is of another fleet."
        )
    return ssl.DER_cert_to_PEM_cert(der)  # only what was hashed


def _ask(address: tuple[str, int], ca: str, question: EnrolRequest) -> EnrolAnswer:
    context = ssl.create_default_context(cadata=ca)
    try:
        data = _exchange(address, context, "POST", "/enrol", msgspec.json.encode(question))
        return msgspec.json.decode(data, type=EnrolAnswer)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise EnrolError(f"Wanted a certificate from {address[0]}:{address[1]}, found: {error}.") from error


def _exchange(address: tuple[str, int], context: ssl.SSLContext, method: str, path: str, body: bytes | None) -> bytes:
    connection = http.client.HTTPSConnection(*address, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        data = answer.read(_MAX_ANSWER_BYTES)
    finally:
        connection.close()
    if answer.status != 200:
        said = data.decode("utf-8", "replace")[:300]
        raise EnrolError(f"Wanted {path} from {address[0]}:{address[1]}, found status {answer.status}: {said}")
    return data


def _make_request(device: str) -> tuple[bytes, str]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Wanted `cryptography` to enrol, found none. Install it: pip install 'headtail[fleet-device]'."
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, request.public_bytes(Encoding.PEM).decode()


def _keep(folder: Path, content: dict[str, bytes]) -> None:
    """Put the files in place together: a folder that is complete, or the one before."""
    staging = folder.with_name(folder.name + ".part")
    old = folder.with_name(folder.name + ".old")
    for path in (staging, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=0o700)
        for name, data in content.items():
            descriptor = os.open(staging / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
    except OSError as error:
        raise EnrolError(
            f"Wanted to keep the certificate in {folder}, found: {error}. Choose another --state."
        ) from error
    shutil.rmtree(old, ignore_errors=True)
