"""The dashboard as a program.

    python -m orchestrator.dashboard.serve --store URL --broker URL --folder DIR [--host ADDRESS] [--port NUMBER]

Off this machine it asks for a password, out of HEADTAIL_DASHBOARD_PASSWORD: what it shows is read-only, but not public.
"""

import argparse
import os
import socket
import sys

import uvicorn

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import is_loopback_host
from edge_runtime.json_log import set_up_logging
from orchestrator.dashboard.app import Dashboard
from orchestrator.dashboard.collector import Collector
from orchestrator.dashboard.home_assistant import Announcer
from orchestrator.fleet.store import Store


class DashboardError(EdgeError):
    """The dashboard cannot be served as it was asked to."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; 1 after a named error."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.dashboard.serve", description="The fleet's dashboard."
    )
    parser.add_argument("--store", required=True, metavar="URL")
    parser.add_argument("--broker", required=True, metavar="URL")
    parser.add_argument("--folder", metavar="DIR", help="of the fleet; nothing is kept there")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS")
    parser.add_argument("--port", type=int, default=8080, metavar="NUMBER", help="0 takes a free one")
    parser.add_argument("--home-assistant", action="store_true", help="announce devices to Home Assistant over MQTT")
    options = parser.parse_args(arguments)
    set_up_logging("dashboard")
    try:
        serve(options)
    except EdgeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def serve(options: argparse.Namespace) -> None:
    """Serve until told to end.

    Raises:
        DashboardError: An address off this machine without a password, or a port that is taken.
        StoreError: No such database.
    """
    password = os.environ.get("HEADTAIL_DASHBOARD_PASSWORD") or None
    if password is None and not is_loopback_host(options.host):
        raise DashboardError(
            f"Wanted a password to listen on {options.host}, found none. "
            "Set HEADTAIL_DASHBOARD_PASSWORD, or listen on 127.0.0.1 and let a reverse proxy ask."
        )
    listener = _listen(options.host, options.port)
    store = Store(options.store)
    try:
        with Collector(options.broker) as collector:
            announcer = Announcer(store, collector.link) if options.home_assistant else None
            if announcer is not None:
                announcer.start()
            app = Dashboard(store, collector, password=password).application()
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
            sys.stdout.write(f"dashboard ready at http://{options.host}:{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            uvicorn.Server(config).run(sockets=[listener])
            if announcer is not None:
                announcer.stop()
    finally:
        listener.close()
        store.close()


def _listen(host: str, port: int) -> socket.socket:
    """Bound here and not by the server, so that "ready" can name the port."""
    try:
        return socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise DashboardError(f"Wanted to listen on {host}:{port}, found: {error}. Try --port 0.") from error


if __name__ == "__main__":
    sys.exit(main())
