"""What the fleet's programs share: their options, their log, how they say that they are ready and how they end."""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.ending import when_told_to_end
from edge_runtime.json_log import set_up_logging


@dataclass(frozen=True)
class Program:
    """The options of one program."""

    store: str
    broker: str
    folder: Path
    owner: str

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Call a function at the first SIGTERM or Ctrl-C."""
        when_told_to_end(stop)

    def say_ready(self, name: str) -> None:
        """One line on standard output."""
        sys.stdout.write(f"{name} ready\n")
        sys.stdout.flush()


def run_program(start: Callable[[Program], None]) -> None:
    """Parse the options and run; a named error is one line and exit status 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--owner", default="orchestrator-1", help="name in leases")
    parsed = parser.parse_args()
    set_up_logging(Path(sys.argv[0]).stem, logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        start(Program(parsed.store, parsed.broker, parsed.folder, parsed.owner))
    except EdgeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)
