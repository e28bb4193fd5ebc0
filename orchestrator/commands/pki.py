"""`headtail pki`: the fleet's certificate authority, enrolment tokens, and the server where devices enrol."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.broker_url import tls_url
from edge_runtime.identity import Place
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.pki import SERVICES, Authority, PkiError, readable_by_broker
from orchestrator.signing import read_trust_file

if TYPE_CHECKING:
    from orchestrator.fleet.store import Store

DEVICE_PORT, SERVICE_PORT, ENROL_PORT = 8883, 8884, 8885
_MOST_HOURS = 8784  # a year


def init(folder: Path, *, host: list[str], json: bool = False) -> None:
    """Make the fleet's authority, and the certificates of broker, orchestrator and tails. Keep the folder secret.

    Args:
        folder: A new folder; `ca.key` in it can make certificates for anybody.
        host: Names and addresses under which devices and services reach this host; may be given several times.
        json: Print JSON.
    """
    authority = Authority.make(folder, host)
    readable_by_broker(authority)
    urls = {name: tls_url(host[0], SERVICE_PORT, authority.files(name)) for name in SERVICES if name != "broker"}
    if json:
        print_json({"fingerprint": authority.fingerprint, "urls": urls})
        return
    sys.stdout.write(f"authority {authority.fingerprint[:16]}.. in {folder}\n")
    for name, url in urls.items():
        sys.stdout.write(f"--broker of {name}: '{url}'\n")


def token(folder: Path, *, device: str, store: str | None = None, tenant: str = "default", hours: float = 24.0) -> None:
    """Print a token with which one device may enrol, once.

    Args:
        folder: The authority's.
        device: The name that it is good for.
        store: URL of the fleet's database; by default that of the last `headtail fleet up --pki`, else fleet.sqlite in the
            authority's folder.
        tenant: The device's.
        hours: How long it is good.
    """
    from orchestrator.enrolment import make_token

    if not 0 < hours <= _MOST_HOURS:
        raise PkiError(f"Wanted --hours above 0 and up to {_MOST_HOURS}, found {hours:g}. A day is the default.")
    with _open(folder, store) as opened:
        made = make_token(opened, Authority(folder), tenant=tenant, device=device, valid_s=3600 * hours)
    sys.stdout.write(made + "\n")


def serve(
    folder: Path,
    *,
    public_host: str,
    store: str | None = None,
    host: str = "127.0.0.1",
    port: int = ENROL_PORT,
    device_port: int = DEVICE_PORT,
    service_port: int = SERVICE_PORT,
    trust: Path | None = None,
    tuf: Path | None = None,
    tuf_url: str | None = None,
    json: bool = False,
) -> None:
    """Let devices enrol over HTTPS until Ctrl-C.

    Args:
        folder: The authority's.
        public_host: Name under which devices reach the broker; one of those given to `headtail pki init`.
        store: URL of the fleet's database; by default that of the last `headtail fleet up --pki`, else fleet.sqlite in the
            authority's folder.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        device_port: Of the broker's listener for devices.
        service_port: Of its listener for services and offloaded requests.
        trust: Trust file that devices get: they run only what its keys have signed.
        tuf: TUF repository of `headtail keys root`, whose root devices get: they take only versions that it lists.
        tuf_url: Where devices find its published metadata.
        json: Print JSON.
    """
    from orchestrator.enrolment import EnrolmentOptions, EnrolmentServer

    place = Place(host=public_host, device_port=device_port, service_port=service_port)
    keys = read_trust_file(trust) if trust is not None else None
    if (tuf is None) != (tuf_url is None):
        raise PkiError("Wanted --tuf and --tuf-url together, found one of them. `headtail fleet up --tuf` gives both.")
    options = EnrolmentOptions(place=place, host=host, port=port, trust=keys, tuf=tuf, tuf_url=tuf_url or "")
    with _open(folder, store) as opened, EnrolmentServer(opened, Authority(folder), options) as server, until_stopped():
        url = f"https://{public_host}:{server.port}"
        if json:
            print_json({"url": url})
        else:
            sys.stdout.write(f"devices enrol at {url}; Ctrl-C stops it\n")
        sys.stdout.flush()
        threading.Event().wait()


def revoke(folder: Path, *, device: str, store: str | None = None, tenant: str = "default") -> None:
    """Refuse a device's certificates from now on. Send the broker SIGHUP, or start it again, for it to know.

    Args:
        folder: The authority's.
        device: Its name.
        store: URL of the fleet's database; by default that of the last `headtail fleet up --pki`, else fleet.sqlite in the
            authority's folder.
        tenant: The device's.
    """
    from orchestrator.enrolment import revoke_device

    with _open(folder, store) as opened:
        count = revoke_device(opened, Authority(folder), f"{tenant}/{device}")
    if count == 0:
        raise PkiError(f"Wanted certificates of {tenant}/{device} to revoke, found none that are valid.")
    sys.stdout.write(f"{count} certificate(s) of {device} revoked in {folder / 'crl.pem'}; tell the broker (SIGHUP)\n")


@contextlib.contextmanager
def _open(folder: Path, url: str | None) -> "Iterator[Store]":
    from orchestrator.fleet.store import Store, default_url

    store = Store(url or Authority(folder).store or default_url(folder))
    try:
        yield store
    finally:
        store.close()
