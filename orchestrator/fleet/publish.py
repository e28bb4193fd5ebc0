"""Make artefacts a version of the registry: each packed once, under its hash, where the fleet's file server finds it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.agent_bundle import AgentBundle
from edge_runtime.artefact import Artefact, file_sha256, pack_artefact
from orchestrator.artefact_server import block_hashes
from orchestrator.fleet.errors import ConflictError
from orchestrator.fleet.files import FOLDER, METADATA_FOLDER
from orchestrator.fleet.registry import NewArtefact, register_artefact, register_version
from orchestrator.fleet.store import Store, now_ms


def publish_version(
    store: Store, folder: Path, name: str, artefacts: Sequence[Artefact | AgentBundle], *, actor: str
) -> None:
    """Pack, keep and register.

    Args:
        store: The fleet's database.
        folder: The fleet's folder.
        name: model@version.
        artefacts: A head, its tail, a whole model, at most one of each; or an agent's bundle.
        actor: For the audit log.

    Raises:
        ConflictError: Two of one role, a tail that does not accept the head's cut, or another version of that name.
        UpdateRepositoryError: The fleet has a TUF repository, and it does not list what is for devices.
    """
    by_role = {artefact.manifest.role: artefact for artefact in artefacts}
    if len(by_role) != len(artefacts):
        raise ConflictError(
            f"Wanted one artefact of each role in {name}, found {len(artefacts)} with {sorted(by_role)}."
        )
    _check_pair(name, by_role.get("head"), by_role.get("tail"))
    if (folder / METADATA_FOLDER).is_dir():
        from orchestrator.fleet.freshness import check_published

        check_published(folder / METADATA_FOLDER, artefacts)
    kept = [_keep(folder / FOLDER, artefact) for artefact in artefacts]
    with store.write() as session:
        for artefact in kept:
            register_artefact(session, artefact, now_ms=now_ms())
        ids = {artefact.role: artefact.id for artefact in kept}
        register_version(
            session,
            name,
            head=ids.get("head"),
            tail=ids.get("tail"),
            whole=ids.get("whole"),
            agent=ids.get("agent"),
            actor=actor,
            now_ms=now_ms(),
        )


def _check_pair(name: str, head: Artefact | AgentBundle | None, tail: Artefact | AgentBundle | None) -> None:
    if not isinstance(head, Artefact) or not isinstance(tail, Artefact):
        return
    if head.manifest.cut is None or tail.manifest.cut is None:
        return
    cut_id = head.manifest.cut.cut_id
    if cut_id not in tail.manifest.cut.accepts:
        raise ConflictError(
            f"Wanted a tail that accepts the head's cut {cut_id} in {name}, found one for {', '.join(tail.manifest.cut.accepts)}."
        )


def _keep(folder: Path, artefact: Artefact | AgentBundle) -> NewArtefact:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".packing.") as place:
        archive = pack_artefact(artefact, Path(place, "artefact.zip"))
        digest, size = file_sha256(archive), archive.stat().st_size
        listed = Path(place, "blocks")
        listed.write_bytes(block_hashes(archive))
        listed.replace(folder / f"{digest}.zip.blocks")
        archive.replace(folder / f"{digest}.zip")
    return NewArtefact(
        id=artefact.id,
        role=artefact.manifest.role,
        **_described(artefact),
        size=size,
        zip_sha256=digest,
        path=str(folder / f"{digest}.zip"),
    )


def _described(artefact: Artefact | AgentBundle) -> dict[str, str]:
    """Model, engine and target, for people; of a bundle what comes nearest."""
    if isinstance(artefact, AgentBundle):
        said = artefact.manifest
        return {"model": f"agent {said.version}", "engine": f"python {said.python or '3'}", "target": said.platform}
    manifest = artefact.manifest
    return {"model": manifest.model.name, "engine": manifest.engine.name, "target": manifest.target}
