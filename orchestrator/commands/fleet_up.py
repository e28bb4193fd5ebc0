"""`headtail fleet up` and `headtail fleet simulate`: run the fleet's programs, or devices that do not exist."""

import subprocess
import sys
import time
from pathlib import Path

from orchestrator.broker import BrokerOptions
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.fleet.fleet_file import default_folder
from orchestrator.fleet.supervisor import DEMO_VERSIONS, Supervisor


def up(
    *,
    folder: Path | None = None,
    store: str | None = None,
    broker: str | None = None,
    port: int = 1883,
    dashboard_port: int = 8080,
    files_port: int = 8081,
    demo: int = 0,
    json: bool = False,
) -> None:
    """Start broker, ingest, orchestrator and dashboard, and start again whatever ends, until Ctrl-C.

    Args:
        folder: Database, logs and what commands need to find the fleet.
        store: URL of a PostgreSQL database, instead of SQLite in the folder.
        broker: URL of a broker that runs already, instead of one that is started on this machine alone.
        port: Of the broker that is started; 0 takes a free one.
        dashboard_port: Where the dashboard listens.
        files_port: Where devices fetch artefacts.
        demo: So many simulated devices, with versions demo@1, demo@2 and demo@bad to roll out.
        json: Print JSON.
    """
    place = folder or default_folder()
    ports = {"dashboard": dashboard_port, "files": files_port}
    options = BrokerOptions(port=port, persistence=None)
    with (
        until_stopped(),
        Supervisor(place, store=store, broker=broker, options=options, ports=ports, demo=demo) as fleet,
    ):
        services = [service.name for service in fleet.services]
        if json:
            print_json({"store": fleet.store, "broker": fleet.broker, "services": services, "ports": fleet.ports})
        else:
            sys.stdout.write(f"broker {fleet.broker} (no access control: this machine alone)\n")
            sys.stdout.write(f"services {', '.join(services)}; logs in {place / 'logs'}\n")
            if "dashboard" in fleet.ports:
                sys.stdout.write(f"dashboard http://127.0.0.1:{fleet.ports['dashboard']}\n")
            if demo:
                sys.stdout.write(
                    f"{demo} simulated devices; try: headtail fleet rollout {DEMO_VERSIONS[0]} --to all --soak 5 --wait\n"
                )
        sys.stdout.flush()
        while True:
            fleet.watch()
            time.sleep(0.5)


def simulate(
    *,
    devices: int = 100,
    broker: str = "mqtt://127.0.0.1:1883",
    heartbeat: float = 5.0,
    qos: int = 0,
    drops_per_hour: float = 2.0,
    reboots_per_hour: float = 0.2,
    slow_share: float = 0.1,
    bad: str | None = None,
    prefix: str = "sim",
    first: int = 0,
    seconds: float | None = None,
) -> None:
    """Simulate devices with real MQTT connections, to try a fleet or to size a host.

    Args:
        devices: How many.
        broker: URL of the MQTT broker.
        heartbeat: Seconds between two heartbeats of a device.
        qos: Of the heartbeats.
        drops_per_hour: How often a device loses its connection.
        reboots_per_hour: How often a device starts again.
        slow_share: Share of devices whose link has a twentieth of the rate.
        bad: VERSION=SHARE: that version fails on this share of the devices.
        prefix: Of the devices' names.
        first: Number of the first device.
        seconds: Stop after so long; at Ctrl-C when not given.
    """
    command = [sys.executable, "-m", "orchestrator.fleet.simulator", "--broker", broker, "--devices", str(devices)]
    command += ["--heartbeat", str(heartbeat), "--qos", str(qos), "--prefix", prefix, "--first", str(first)]
    command += ["--drops-per-hour", str(drops_per_hour), "--reboots-per-hour", str(reboots_per_hour)]
    command += ["--slow-share", str(slow_share), *(["--bad", bad] if bad else [])]
    command += ["--seconds", str(seconds)] if seconds is not None else []
    with until_stopped():
        subprocess.run(command, check=False)
