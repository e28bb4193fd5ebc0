"""The fleet's file server: artefacts of registered versions, in ranges, from the folder of the fleet."""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

import msgspec
from sqlalchemy import delete

from edge_runtime.json_log import set_up_logging
from orchestrator.artefact_server import ArtefactServer
from orchestrator.fleet.rollouts import FILES_KEY, FILES_SCOPE
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import ConfigKey

FOLDER = "artefacts"  # below the fleet's


def announce(store: Store, url: str) -> None:
    """Tell the orchestrators under which URL devices find artefacts."""
    with store.write() as session:
        session.execute(delete(ConfigKey).where(ConfigKey.scope == FILES_SCOPE, ConfigKey.key == FILES_KEY))
        text = msgspec.json.encode(url).decode()
        session.add(ConfigKey(scope=FILES_SCOPE, key=FILES_KEY, value=text, changed_ms=now_ms()))


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--broker")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--advertise", help="host name that devices use")
    parsed = parser.parse_args()
    set_up_logging("files", logging.INFO)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    server = ArtefactServer(parsed.folder / FOLDER, host=parsed.host, port=parsed.port, advertise=parsed.advertise)
    with server:
        announce(Store(parsed.store), server.url)
        sys.stdout.write(f"files ready at {server.url}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
