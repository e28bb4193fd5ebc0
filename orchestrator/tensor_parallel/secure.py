"""One key file for a cluster: TLS 1.3 with client certificates, where both sides hold and trust the same certificate.

Whoever has the file is a member; nothing else is trusted. Forward secrecy and authenticated encryption are TLS's.
"""

import contextlib
import datetime
import os
import socket
import ssl
import stat
from pathlib import Path

from orchestrator.tensor_parallel.errors import KeyFileError, PeerError

_YEARS = 20


def write_key_file(path: Path) -> None:
    """Make a new cluster key: a P-256 key with a self-signed certificate in one PEM file, readable by its owner.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headtail cluster")])
    now = datetime.datetime.now(datetime.timezone.utc)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))  # boards without a clock battery
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise KeyFileError(f"Wanted to write a new key file, found {error} at {path}.") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(text)


class Keys:
    """Both sides' TLS settings from one key file.

    Raises:
        KeyFileError: Missing, damaged, or readable by group or others.
    """

    def __init__(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise KeyFileError(
                f"Wanted the cluster's key file, found {error} at {path}. Make one with `headtail llm key`."
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(
                f"Wanted a key file that only its owner reads, found mode {mode & 0o777:o}. chmod 600 {path}"
            )
        self.server = _context(ssl.PROTOCOL_TLS_SERVER, path)
        self.server.num_tickets = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT, path)

    def accept(self, raw: socket.socket, peer: str, *, timeout_s: float) -> ssl.SSLSocket:
        """Shake hands as the side that listens.

        Raises:
            PeerError: The peer holds another key, speaks something else, or stalls.
        """
        return self._shake(raw, peer, timeout_s, server=True)

    def connect(self, raw: socket.socket, peer: str, *, timeout_s: float) -> ssl.SSLSocket:
        """Shake hands as the side that dialled.

        Raises:
            PeerError: As `accept`.
        """
        return self._shake(raw, peer, timeout_s, server=False)

    def _shake(self, raw: socket.socket, peer: str, timeout_s: float, *, server: bool) -> ssl.SSLSocket:
        try:
            tune(raw)
            raw.settimeout(timeout_s)
            secured = (self.server if server else self.client).wrap_socket(raw, server_side=server)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            with contextlib.suppress(OSError):
                raw.close()
            if isinstance(error, TimeoutError):
                raise PeerError(
                    f"Wanted {peer} to shake hands within {timeout_s:.1f} s, found no answer. Is it busy, or does it hang?"
                ) from error
            raise PeerError(
                f"Wanted a member of the cluster, found {error} at {peer}. Do both have the same key?"
            ) from error
        return secured


def _context(protocol: int, path: Path) -> ssl.SSLContext:
    try:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # members are known by the key, not by a name
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(path)
        context.load_verify_locations(cafile=str(path))
    except (OSError, ValueError) as error:
        raise KeyFileError(f"Wanted a key file of `headtail llm key`, found {error} at {path}.") from error
    return context


def tune(raw: socket.socket) -> None:
    """No delay for small messages; a host that vanished is noticed within 15 s even when nothing is sent."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000)):
        number = getattr(socket, option, None)
        if number is not None:
            raw.setsockopt(socket.IPPROTO_TCP, number, value)
