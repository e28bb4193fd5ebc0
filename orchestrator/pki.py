"""The fleet's own certificate authority: one folder with the CA, the services' certificates, the CRL and the online key.

Devices have their name as common name; services have `@name`, which no device can be called. Keys are P-256. Only
services may act as TLS servers.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import TlsFiles
from edge_runtime.durable import write_durably
from edge_runtime.messages import check_segment
from orchestrator.signing import make_key, write_private

CA_DAYS = 3650
SERVICE_DAYS = 825
DEVICE_DAYS = 365
CRL_DAYS = 3650  # made anew at every revocation
SERVICES = ("broker", "orchestrator", "tails", "llm", "homeassistant")
_LOOPBACK = ("127.0.0.1", "localhost")  # services on this host reach each other there
ONLINE_KEY = "online.pem"  # signs the TUF repository's snapshot and timestamp
_STORE = "store.url"
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_EARLIER = datetime.timedelta(minutes=5)  # clocks of devices differ


class PkiError(EdgeError):
    """The authority's folder is missing, incomplete, or there already, or something is asked of it that it cannot give."""


class RequestError(EdgeError):
    """A certificate request that is not valid, or for a name that it may not have."""


class Authority:
    """The authority in a folder that `make` wrote.

    Raises:
        PkiError: No authority there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise PkiError(f"Wanted an authority in {folder}, found: {error}. Make one: headtail pki init.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError(f"Wanted a P-256 key, found {type(key).__name__} in {folder / 'ca.key'}.")
        self._key = key

    @classmethod
    def make(cls, folder: Path, hosts: Sequence[str]) -> "Authority":
        """Make an authority, the certificates of services, and the key that says that updates are fresh.

        Args:
            folder: Must not hold one already.
            hosts: Names and addresses under which devices reach the broker and the artefact server.

        Raises:
            KeyFileError: There is one already.
            PkiError: A host that no certificate can name.
        """
        _check_hosts(hosts)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headtail fleet authority")])
        builder = _builder(name, name, key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        write_private(folder / "ca.key", _private_pem(key))
        folder.chmod(0o755)
        write_durably(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))
        authority = cls(folder)
        authority.revoke(())
        for service in SERVICES:
            authority.issue_service(service, (*hosts, *(one for one in _LOOPBACK if one not in hosts)))
        make_key(folder / ONLINE_KEY, name="online")
        return authority

    def files(self, service: str) -> TlsFiles:
        """Where a service's certificate and key are.

        Raises:
            PkiError: It has none.
        """
        found = TlsFiles(self.folder / "ca.pem", self.folder / f"{service}.pem", self.folder / f"{service}.key")
        if found.cert is None or not found.cert.is_file():
            raise PkiError(f"Wanted the certificate of {service}, found none in {self.folder}.")
        return found

    def issue_service(self, service: str, hosts: Sequence[str]) -> TlsFiles:
        """Key and certificate of a service, which may be client and server."""
        check_segment("service", service)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._for(f"@{service}", key.public_key(), SERVICE_DAYS)
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write_private(self.folder / f"{service}.key", _private_pem(key))
        write_durably(self.folder / f"{service}.pem", certificate.public_bytes(Encoding.PEM))
        return self.files(service)

    def issue_device(self, request_pem: bytes, device: str, *, days: int = DEVICE_DAYS) -> x509.Certificate:
        """A certificate for a device's request; the name is the one that its token is good for, whatever it asks for.

        Raises:
            RequestError: Not a request, its own signature is wrong, or another kind of key.
            MessageError: Not a device's name.
        """
        check_segment("device", device)
        try:
            request = x509.load_pem_x509_csr(request_pem)
        except ValueError as error:
            raise RequestError(f"Wanted a certificate request in PEM, found: {error}.") from error
        public = request.public_key()
        if not request.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey):
            raise RequestError("Wanted a request signed by its own P-256 key, found another one.")
        if public.curve.name != "secp256r1":
            raise RequestError(f"Wanted a P-256 key, found {public.curve.name}.")
        builder = self._for(device, public, days)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def revoke(self, serials: Sequence[int]) -> Path:
        """Add serial numbers to the revocation list that the broker reads; it must be told (SIGHUP) or started again."""
        path = self.folder / "crl.pem"
        revoked = {one.serial_number for one in x509.load_pem_x509_crl(path.read_bytes())} if path.is_file() else set()
        now = _now()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now).next_update(now + datetime.timedelta(days=CRL_DAYS))
        for serial in sorted(revoked | set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        write_durably(path, builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path

    @property
    def hosts(self) -> list[str]:
        """Names and addresses of this host, as its services' certificates say; that which devices use comes first."""
        certificate = x509.load_pem_x509_certificate((self.folder / "broker.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in names]

    def keep_store(self, url: str) -> None:
        """Remember in which database the devices of this authority are."""
        path = self.folder / _STORE
        path.touch(mode=0o600)  # a URL may hold a password
        path.write_text(url)

    @property
    def store(self) -> str | None:
        """What `keep_store` kept."""
        path = self.folder / _STORE
        return path.read_text() if path.is_file() else None

    @property
    def fingerprint(self) -> str:
        """sha256 of the CA's certificate: how a device that has nothing else knows it."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def _for(self, name: str, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.certificate.subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(
            issuer, critical=False
        )  # strict verifiers (Python 3.13) ask for both identifiers
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return builder.add_extension(_usage(sign=False), critical=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _EARLIER)
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not sign,
        encipher_only=False,
        decipher_only=False,
    )


def _check_hosts(hosts: Sequence[str]) -> None:
    for host in hosts:
        if _address(host) is None and _HOST_NAME.fullmatch(host) is None:
            raise PkiError(
                f"Wanted host names of letters, digits and hyphens, or addresses, found {host[:80]!r}. "
                "Give one without a port; one with other letters in its ASCII form (xn--..)."
            )


def _general(host: str) -> x509.GeneralName:
    address = _address(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def readable_by_broker(authority: Authority, account: str = "mosquitto") -> None:
    """Give the broker's key to the account that mosquitto changes to when it is started by root."""
    if os.geteuid() == 0:
        import pwd

        try:
            owner = pwd.getpwnam(account)
        except KeyError:
            return
        os.chown(authority.folder / "broker.key", owner.pw_uid, owner.pw_gid)
