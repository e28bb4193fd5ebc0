"""`headtail fleet up` and `headtail fleet simulate`: run the fleet's programs, or devices that do not exist."""

import socket
import subprocess
import sys
import time
from pathlib import Path

from edge_runtime.broker_url import hide_password, parse_url
from orchestrator.broker import BrokerOptions, free_port
from orchestrator.broker_access import AccessOptions
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.fleet_file import default_folder, find_broker
from orchestrator.fleet.services import ENROLMENT, ENROLMENT_PORT
from orchestrator.fleet.simulator import parse_bad
from orchestrator.fleet.supervisor import DEMO_VERSIONS, Supervisor
from orchestrator.leash import Leash, held_back


def up(
    *,
    folder: Path | None = None,
    store: str | None = None,
    broker: str | None = None,
    port: int = 1883,
    pki: Path | None = None,
    host: str = "127.0.0.1",
    trust: Path | None = None,
    tuf: Path | None = None,
    tenant: str = "default",
    device_port: int = 8883,
    service_port: int = 8884,
    enrol_port: int = ENROLMENT_PORT,
    home_assistant: bool = False,
    dashboard_port: int = 8080,
    files_port: int = 8081,
    tails: int = 1,
    demo: int = 0,
    json: bool = False,
) -> None:
    """Start broker, ingest, orchestrator, dashboard and tails, and start again whatever ends, until Ctrl-C.

    Args:
        folder: Database, logs and what commands need to find the fleet.
        store: URL of a PostgreSQL database, instead of SQLite in the folder.
        broker: URL of a broker that runs already, instead of one that is started on this machine alone.
        port: Of the broker that is started; 0 takes a free one.
        pki: Folder of `headtail pki init`: broker, file server and the server where devices enrol use its certificates.
        host: Address that they listen on, with --pki.
        trust: Trust file of `headtail keys trust`, which devices get when they enrol: they run only what its keys signed.
        tuf: TUF repository of `headtail keys root`, whose root devices get when they enrol: they take only versions that it lists,
            and notice when somebody withholds newer ones.
        tenant: Of the devices, with --pki.
        device_port: Where devices connect, with --pki.
        service_port: Where services connect and devices offload, with --pki.
        enrol_port: Where devices enrol, with --pki; 0 takes a free one.
        home_assistant: Announce the devices to Home Assistant over MQTT.
        dashboard_port: Where the dashboard listens; 0 takes a free one.
        files_port: Where devices fetch artefacts; 0 takes a free one.
        tails: Worker processes that serve the tails of the versions that devices run or shall run; 0 leaves that to others.
        demo: So many simulated devices, with versions demo@1, demo@2 and demo@bad to roll out.
        json: Print JSON.
    """
    place = folder or default_folder()
    ports = {"dashboard": dashboard_port, "files": files_port, ENROLMENT: enrol_port}
    ports = {name: wanted or free_port() for name, wanted in ports.items()}
    if pki is None and (trust is not None or tuf is not None or host != "127.0.0.1"):
        raise FleetError(
            "Wanted certificates for other machines and their keys, found no --pki. Make it: headtail pki init."
        )
    if pki is not None and broker is not None:
        raise FleetError("Wanted one broker, found --broker and --pki, which starts one. Leave one of them out.")
    access = None if pki is None else AccessOptions(pki.resolve(), host, device_port, service_port, tenant)
    options = BrokerOptions(port=port, persistence=None, access=access)
    with (
        until_stopped(),
        Supervisor(
            place,
            store=store,
            broker=broker,
            options=options,
            ports=ports,
            trust=trust,
            tuf=tuf,
            home_assistant=home_assistant,
            tails=tails,
            demo=demo,
        ) as fleet,
    ):
        if json:
            shown = {"store": fleet.store, "broker": fleet.broker, "services": fleet.services, "ports": fleet.ports}
            print_json(shown)
        else:
            sys.stdout.write("\n".join(_lines(fleet, place, pki, demo=demo, own_broker=broker is None)) + "\n")
        sys.stdout.flush()
        while True:
            fleet.watch()
            time.sleep(0.5)


def _lines(fleet: Supervisor, folder: Path, pki: Path | None, *, demo: int, own_broker: bool) -> list[str]:
    """What a person is told at the start."""
    note = "" if not own_broker else " (no access control: this machine alone)" if pki is None else " (certificates)"
    lines = [
        f"broker {hide_password(fleet.broker)}{note}",
        f"services {', '.join(fleet.services)}; logs in {folder / 'logs'}",
    ]
    if "dashboard" in fleet.ports:
        lines.append(f"dashboard http://127.0.0.1:{fleet.ports['dashboard']}")
    else:
        lines.append("no dashboard: it needs more packages. In a clone: pip install '.[dashboard]'")
    if fleet.enrol_url is not None:
        lines.append(f"devices enrol at {fleet.enrol_url}; a token for one: headtail pki token {pki} --device NAME")
    if demo:
        lines.append(
            f"{demo} simulated devices; try: headtail fleet rollout {DEMO_VERSIONS[0]} --to all --soak 5 --wait"
        )
    return lines


def simulate(
    *,
    devices: int = 100,
    broker: str | None = None,
    heartbeat: float = 5.0,
    qos: int = 0,
    drops_per_hour: float = 2.0,
    reboots_per_hour: float = 0.2,
    slow_share: float = 0.1,
    bad: str | None = None,
    prefix: str = "sim",
    first: int = 0,
    seconds: float | None = None,
    folder: Path | None = None,
) -> None:
    """Simulate devices with real MQTT connections, to try a fleet or to size a host.

    Args:
        devices: How many.
        broker: URL of the MQTT broker; that of `headtail fleet up`, else mqtt://127.0.0.1:1883, when not given.
        heartbeat: Seconds between two heartbeats of a device.
        qos: Of the heartbeats.
        drops_per_hour: How often a device loses its connection.
        reboots_per_hour: How often a device starts again.
        slow_share: Share of devices whose link has a twentieth of the rate.
        bad: VERSION=SHARE: that version fails on this share of the devices; VERSION alone on all.
        prefix: Of the devices' names.
        first: Number of the first device.
        seconds: Stop after so long; at Ctrl-C when not given.
        folder: Folder of `headtail fleet up`.
    """
    parse_bad([bad] if bad else [])
    _check_amounts(devices, heartbeat, slow_share)
    broker = broker or find_broker(folder)
    url = parse_url(broker)
    if url.tls is not None:
        raise FleetError(
            "Wanted a broker without TLS for simulated devices, found one with certificates. Start another fleet."
        )
    try:
        socket.create_connection((url.host, url.port), timeout=5).close()
    except OSError as error:
        raise FleetError(
            f"Wanted a broker at {url.host}:{url.port}, found: {error}. Start one (headtail fleet up), or give --broker."
        ) from error
    command = [sys.executable, "-m", "orchestrator.fleet.simulator", "--broker", broker, "--devices", str(devices)]
    command += ["--heartbeat", str(heartbeat), "--qos", str(qos), "--prefix", prefix, "--first", str(first)]
    command += ["--drops-per-hour", str(drops_per_hour), "--reboots-per-hour", str(reboots_per_hour)]
    command += ["--slow-share", str(slow_share), *(["--bad", bad] if bad else [])]
    command += ["--seconds", str(seconds)] if seconds is not None else []
    with until_stopped(), Leash() as leash:
        with held_back():  # a signal in between would leave a process that nobody knows
            process = subprocess.Popen(command, start_new_session=True)
            leash.hold(process.pid)
        try:
            if process.wait():
                raise FleetError(f"Wanted simulated devices, found that they ended with status {process.returncode}.")
        finally:
            process.terminate()
            process.wait()
            leash.let_go(process.pid)


def _check_amounts(devices: int, heartbeat_s: float, slow_share: float) -> None:
    if devices < 1 or not heartbeat_s > 0 or not 0 <= slow_share <= 1:
        raise FleetError(
            "Wanted one device or more, a heartbeat of more than 0 s and a --slow-share from 0 to 1, "
            f"found {devices}, {heartbeat_s:g} and {slow_share:g}."
        )
