"""The fleet's file server: artefacts of registered versions, in ranges, from the folder of the fleet."""

import argparse
import logging
import ssl
import sys
import threading
from pathlib import Path

import msgspec
from sqlalchemy import delete

from edge_runtime.ending import when_told_to_end
from edge_runtime.json_log import set_up_logging
from orchestrator.artefact_server import ArtefactServer
from orchestrator.enrolment import server_context
from orchestrator.fleet.rollouts import FILES_KEY, FILES_SCOPE
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import ConfigKey
from orchestrator.pki import Authority

FOLDER = "artefacts"  # below the fleet's
METADATA_FOLDER = "tuf"  # what `orchestrator.fleet.freshness` publishes


def announce(store: Store, url: str) -> None:
    """Tell the orchestrators under which URL devices find artefacts."""
    with store.write() as session:
        session.execute(delete(ConfigKey).where(ConfigKey.scope == FILES_SCOPE, ConfigKey.key == FILES_KEY))
        text = msgspec.json.encode(url).decode()
        session.add(ConfigKey(scope=FILES_SCOPE, key=FILES_KEY, value=text, changed_ms=now_ms()))


def members_only(authority: Authority) -> ssl.SSLContext:
    """TLS as a server that asks for a certificate of the fleet."""
    context = server_context(authority.files("orchestrator"))
    context.load_verify_locations(authority.folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--broker")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--advertise", help="host name that devices use")
    parser.add_argument(
        "--pki", type=Path, help="folder of the fleet's authority: over TLS, to devices with its certificates"
    )
    parsed = parser.parse_args()
    set_up_logging("files", logging.INFO)
    stopped = threading.Event()
    when_told_to_end(stopped.set)
    tls = None if parsed.pki is None else members_only(Authority(parsed.pki))
    folder = parsed.folder / FOLDER
    published = parsed.folder / METADATA_FOLDER
    server = ArtefactServer(
        folder, host=parsed.host, port=parsed.port, advertise=parsed.advertise, tls=tls, metadata=published
    )
    with server:
        announce(Store(parsed.store), server.url)
        sys.stdout.write(f"files ready at {server.url}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
