"""`headtail fleet add`: make artefacts a version of the fleet's registry."""

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.agent_bundle import AgentBundle
from orchestrator.agent_bundle import open_any
from orchestrator.commands import fleet_rollout as commands
from orchestrator.commands.output import print_json
from orchestrator.fleet.fleet_file import default_folder, find_store
from orchestrator.fleet.publish import publish_version
from orchestrator.fleet.queries import resolve
from orchestrator.fleet.store import Store, now_ms


def add(
    version: str, *artefacts: Path, store: str | None = None, folder: Path | None = None, json: bool = False
) -> None:
    """Register artefacts as a version that can be rolled out: a head with its tail, a whole model, or all three; or an agent's bundle.

    Args:
        version: MODEL@VERSION.
        artefacts: Folders or .zip files.
        store: URL of the fleet's database.
        folder: Folder of `headtail fleet up`.
        json: Print JSON.
    """
    opened = [open_any(path) for path in artefacts]
    database = Store(store or find_store(folder), migrate=store is not None)
    publish_version(database, folder or default_folder(), version, opened, actor=f"user:{getpass.getuser()}")
    database.close()
    if json:
        print_json({"version": version, "artefacts": {one.manifest.role: one.id for one in opened}})
    else:
        parts = ", ".join(f"{one.manifest.role} {one.id[:12]}.." for one in opened)
        sys.stdout.write(f"{version}: {parts}; roll it out: headtail fleet rollout {version} --to GROUP\n")


def add_and_roll_out(
    artefacts: Sequence[Path], *, to: str, probation: float | None, folder: Path | None, json: bool
) -> None:
    """What `headtail deploy` does where a fleet runs: a version named after the content, and a rollout until it ends."""
    opened = [open_any(path) for path in artefacts]
    name = "agent" if isinstance(opened[0], AgentBundle) else opened[0].manifest.model.name
    version = f"{name}@{'-'.join([opened[0].id[:12], *(one.id[:6] for one in opened[1:])])}"
    database = Store(find_store(folder), migrate=False)
    publish_version(database, folder or default_folder(), version, opened, actor=f"user:{getpass.getuser()}")
    with database.read() as session:
        alone = len(resolve(session, to, now_ms=now_ms())) == 1
    database.close()
    stages = "100%" if alone else commands.USUAL_STAGES  # one device is its own canary
    probation_s = 10.0 if probation is None else probation
    commands.rollout(
        version, to=to, stages=stages, soak=10.0, probation=probation_s, wait=True, folder=folder, json=json
    )
