"""Simulated devices with real MQTT connections, thousands in one process: `python -m orchestrator.fleet.simulator --devices N`."""

import argparse
import contextlib
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from edge_runtime.messages import Topics
from edge_runtime.mqtt import parse_url
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.sim_device import Behaviour, SimDevice
from orchestrator.fleet.sim_memory import Ledger
from orchestrator.fleet.sim_net import Net


class FleetSimulator:
    """Devices NAME-0000.. of one tenant; `run` in a thread or a process of its own.

    Args:
        broker: mqtt://host:port.
        count: How many devices.
        behaviour: See `Behaviour`.
        state: File that keeps what the devices know over a crash; null forgets.
        prefix: Of their names.
        tenant: Of all of them.
        first: Number of the first one, so that several processes make one fleet.
    """

    def __init__(
        self,
        broker: str,
        count: int,
        behaviour: Behaviour | None = None,
        *,
        state: Path | None = None,
        prefix: str = "sim",
        tenant: str = "default",
        first: int = 0,
    ) -> None:
        url = parse_url(broker)
        _allow_files(count + 100)
        self._net = Net()
        ledger = Ledger(state)
        self.devices = [
            SimDevice(
                self._net,
                (url.host, url.port),
                Topics(tenant, f"{prefix}-{first + index:04}"),
                behaviour or Behaviour(),
                ledger,
            )
            for index in range(count)
        ]

    def run(self, *, seconds: float | None = None) -> None:
        """Until `stop`, or for so long; then every connection is cut as by a power failure."""
        try:
            self._net.run(seconds=seconds)
        finally:
            self._net.close()

    def stop(self) -> None:
        """End `run` soon; from any thread."""
        self._net.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.fleet.simulator", description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--prefix", default="sim")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--heartbeat", type=float, default=5.0)
    parser.add_argument("--qos", type=int, choices=[0, 1], default=0)
    parser.add_argument("--drops-per-hour", type=float, default=0.0)
    parser.add_argument("--reboots-per-hour", type=float, default=0.0)
    parser.add_argument("--slow-share", type=float, default=0.1)
    parser.add_argument("--probation-share", type=float, default=1.0)
    parser.add_argument("--bad", action="append", default=[], metavar="VERSION=SHARE")
    parser.add_argument("--seconds", type=float)
    parsed = parser.parse_args(arguments)
    behaviour = Behaviour(
        heartbeat_s=parsed.heartbeat,
        heartbeat_qos=parsed.qos,
        drops_per_hour=parsed.drops_per_hour,
        reboots_per_hour=parsed.reboots_per_hour,
        slow_share=parsed.slow_share,
        probation_share=parsed.probation_share,
        bad=parse_bad(parsed.bad),
        connect_over_s=max(1.0, parsed.devices / 1000),
    )
    simulator = FleetSimulator(
        parsed.broker,
        parsed.devices,
        behaviour,
        state=parsed.state,
        prefix=parsed.prefix,
        tenant=parsed.tenant,
        first=parsed.first,
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        simulator.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.stdout.write(f"{parsed.devices} devices ready\n")
    sys.stdout.flush()
    simulator.run(seconds=parsed.seconds)
    return 0


def parse_bad(texts: Sequence[str]) -> dict[str, float]:
    """VERSION=SHARE; the version alone fails everywhere.

    Raises:
        FleetError: A share that is no number from 0 to 1.
    """
    bad: dict[str, float] = {}
    for text in texts:
        version, _, share = text.partition("=")
        try:
            bad[version] = float(share or 1)
        except ValueError:
            bad[version] = -1
        if not 0 <= bad[version] <= 1:
            raise FleetError(f"Wanted VERSION=SHARE with a share from 0 to 1, found {text!r}.")
    return bad


def _allow_files(count: int) -> None:
    """Let this process open so many sockets, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == -1 else min(count, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
