"""`headtail fleet add`: make artefacts a version of the fleet's registry."""

import getpass
import sys
from pathlib import Path

from edge_runtime.agent_bundle import AgentBundle
from orchestrator.agent_bundle import open_any
from orchestrator.commands import fleet_rollout as commands
from orchestrator.commands.output import print_json
from orchestrator.fleet.fleet_file import default_folder, find_store
from orchestrator.fleet.publish import publish_version
from orchestrator.fleet.store import Store


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


def add_and_roll_out(artefact: Path, *, to: str, probation: float | None, folder: Path | None, json: bool) -> None:
    """What `headtail deploy` does where a fleet runs: a version named after the content, and a rollout until it ends."""
    opened = open_any(artefact)
    name = "agent" if isinstance(opened, AgentBundle) else opened.manifest.model.name
    version = f"{name}@{opened.id[:12]}"
    database = Store(find_store(folder), migrate=False)
    publish_version(database, folder or default_folder(), version, [opened], actor=f"user:{getpass.getuser()}")
    database.close()
    probation_s = 10.0 if probation is None else probation
    commands.rollout(version, to=to, soak=10.0, probation=probation_s, wait=True, folder=folder, json=json)
