"""Round trip of a no-op tail against bare paho on both ends, with certificates on both sides: as `bench_rtt`, over mTLS."""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.bench_rtt import child, measure, row, stop
from edge_runtime.broker_url import TlsFiles, tls_url
from orchestrator.broker import BrokerOptions, MosquittoBroker, free_port
from orchestrator.broker_access import AccessOptions
from orchestrator.pki import Authority, readable_by_broker

HOST = "127.0.0.1"


@contextlib.contextmanager
def secured_broker() -> Iterator[tuple[Authority, AccessOptions]]:
    """Mosquitto with certificates and access rules, and the authority that made them."""
    with tempfile.TemporaryDirectory(prefix="headtail-tls.") as folder:
        Path(folder).chmod(0o755)  # mosquitto gives up root
        authority = Authority.make(Path(folder, "pki"), [HOST])
        readable_by_broker(authority)
        access = AccessOptions(authority.folder, HOST, free_port(), free_port())
        with MosquittoBroker(BrokerOptions(access=access)):
            yield authority, access


def device_files(authority: Authority, name: str) -> TlsFiles:
    """Key and certificate of a device, as `edge-agent enroll` gets them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    certificate = authority.issue_device(request.public_bytes(Encoding.PEM), name)
    files = TlsFiles(authority.folder / "ca.pem", authority.folder / f"{name}.pem", authority.folder / f"{name}.key")
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (authority.folder / f"{name}.key").write_bytes(private)
    (authority.folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return files


def rows(count: int = 600) -> list[dict[str, object]]:
    """All rows of this benchmark."""
    result = []
    with secured_broker() as (authority, access):
        tails = tls_url(HOST, access.service_port, authority.files("tails"))
        device, peer = (tls_url(HOST, access.service_port, device_files(authority, name)) for name in ("bench", "peer"))
        workers = [child("echo", tails), child("tail", tails)]
        try:
            for size, name, bar in ((10_000, "10k", 1.25), (100_000, "100k", 1.15)):
                for qos in (0, 1):
                    ours, bare = measure(device, payload_bytes=size, qos=qos, count=count, peer_url=peer)
                    p50, peer50 = statistics.median(ours), statistics.median(bare)
                    what = (
                        f"no-op tail round trip with mTLS on both ends, {size // 1000} KB, QoS {qos}, p50 {p50:.2f} ms against "
                        f"{peer50:.2f} ms (p99 {np.percentile(ours, 99):.1f} against {np.percentile(bare, 99):.1f})"
                    )
                    result.append(row(f"rtt_tls.{name}_q{qos}", what, p50 / peer50, "x", "<=", bar))
        finally:
            for worker in workers:
                stop(worker)
    return result


if __name__ == "__main__":
    for one in rows(60):
        print(one)
