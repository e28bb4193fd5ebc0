"""Let devices join over HTTPS: a single-use token and a certificate request become a certificate."""

import hashlib
import logging
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import TlsFiles
from edge_runtime.enrol import EnrolAnswer, EnrolRequest
from edge_runtime.freshness import Anchor
from edge_runtime.identity import Place
from edge_runtime.messages import Topics
from edge_runtime.signature import TrustFile
from orchestrator.fleet.audit import append_audit
from orchestrator.fleet.registry import add_enrolment, register_certificate, use_enrolment
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import Certificate, Enrolment
from orchestrator.https_server import Answer, HttpServer
from orchestrator.pki import Authority

log = logging.getLogger(__name__)
_SECRET_BYTES = 24
_MAX_BODY_BYTES = 16 << 10


@dataclass(frozen=True)
class EnrolmentOptions:
    """Where it listens, and what devices are told."""

    place: Place
    host: str = "127.0.0.1"
    port: int = 0
    trust: TrustFile | None = None
    tuf: Path | None = None  # a TUF repository: devices get its newest root
    tuf_url: str = ""  # where they find its metadata


def make_token(store: Store, authority: Authority, *, tenant: str, device: str | None, valid_s: float) -> str:
    """A token that is good once; only its hash is kept.

    Args:
        store: The fleet's database.
        authority: Its fingerprint goes into the token.
        tenant: Of the device.
        device: Null lets the device choose a name that nobody has.
        valid_s: Seconds from now.
    """
    secret = secrets.token_hex(_SECRET_BYTES)  # no "-" in front, which a command line would take for an option
    now = now_ms()
    name = None if device is None else f"{tenant}/{Topics(tenant, device).device}"
    row = Enrolment(
        token_sha256=_digest(secret),
        device=name,
        tenant=tenant,
        labels={},
        created_ms=now,
        expires_ms=now + int(1000 * valid_s),
        used_ms=None,
        used_by=None,
    )
    with store.write() as session:
        add_enrolment(session, row, actor="pki")
    return f"{secret}.{authority.fingerprint}"


class EnrolmentServer:
    """The HTTPS server; use as a context or `close` it."""

    def __init__(self, store: Store, authority: Authority, options: EnrolmentOptions) -> None:
        self._store, self._authority, self._options = store, authority, options
        context = server_context(authority.files("broker"))
        routes: dict[tuple[str, str], Callable[[bytes], Answer]] = {
            ("GET", "/ca.pem"): lambda _: Answer(200, (authority.folder / "ca.pem").read_bytes()),
            ("POST", "/enrol"): self._enrol,
        }
        self._server = HttpServer(options.host, options.port, routes, context, max_body_bytes=_MAX_BODY_BYTES)
        self.port = self._server.port

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def __enter__(self) -> "EnrolmentServer":
        """Serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _enrol(self, body: bytes) -> Answer:
        try:
            question = msgspec.json.decode(body, type=EnrolRequest)
            device = f"{question.tenant}/{Topics(question.tenant, question.device).device}"
            with self._store.write() as session:  # a token is used up only together with its certificate
                use_enrolment(session, _digest(question.secret), device, now_ms=now_ms())
                certificate = self._authority.issue_device(question.request.encode(), question.device)
                row = Certificate(
                    serial=f"{certificate.serial_number:x}",
                    device=device,
                    pem=certificate.public_bytes(Encoding.PEM).decode(),
                    not_after_ms=int(1000 * certificate.not_valid_after_utc.timestamp()),
                    revoked_ms=None,
                )
                register_certificate(session, row, actor="pki", now_ms=now_ms())
                pem = row.pem
        except (EdgeError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("refused an enrolment: %s", type(error).__name__)  # its text may hold what was sent
            return Answer(403, b"refused: the token is not good for this name, or the request is not valid")
        options = self._options
        answer = EnrolAnswer(certificate=pem, place=options.place, trust=options.trust, anchor=self._anchor())
        return Answer(200, msgspec.json.encode(answer))

    def _anchor(self) -> Anchor | None:
        if self._options.tuf is None:
            return None
        from orchestrator.update_repository import UpdateRepository

        return Anchor(url=self._options.tuf_url, root=UpdateRepository(self._options.tuf).newest_root().decode())


def revoke_device(store: Store, authority: Authority, device: str) -> int:
    """Put a device's certificates on the revocation list; how many there were."""
    now = now_ms()
    with store.write() as session:
        query = select(Certificate).where(Certificate.device == device, Certificate.revoked_ms.is_(None))
        found = list(session.scalars(query))
        for row in found:
            row.revoked_ms = now
        # the database decides and the list is made from it, also when it was lost after an earlier revocation
        every = select(Certificate.serial).where(Certificate.revoked_ms.is_not(None))
        serials = [int(serial, 16) for serial in session.scalars(every)]
        append_audit(session, "pki", "revoke", device, {"certificates": len(found)}, now_ms=now)
        authority.revoke(serials)
    return len(found)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS as a server that asks for no client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert or files.ca, files.key)
    return context


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
