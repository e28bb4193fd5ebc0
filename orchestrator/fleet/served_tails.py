"""Which tails a fleet needs: those of versions that devices run or shall run, so that old and new are alive in a rollout.

Whoever serves them says so in the registry; a rollout touches no device before its new tail is served.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edge_runtime.messages import Desired, Models, Reported
from orchestrator.fleet.records import read_record
from orchestrator.fleet.state import ENDED
from orchestrator.fleet.store import Store
from orchestrator.fleet.tables import (
    ArtefactRow,
    ConfigKey,
    DesiredState,
    ReportedState,
    RolloutRow,
    TargetRow,
    Version,
)

SCOPE = "fleet"  # of keys that are the fleet's own
_PREFIX = "tails."
_ALIVE_MS = 15_000  # a server that has said nothing for so long does not count


class ServedTails(msgspec.Struct, frozen=True, kw_only=True):
    """What one server of tails says in the registry."""

    artefacts: tuple[str, ...]


def wanted_tails(session: Session) -> dict[str, Path]:
    """Tails by artefact id, and where each .zip lies, oldest version first.

    Wanted are the tails of versions whose head a device runs or is to run, those of rollouts that have not ended, and of every model
    the newest.
    """
    versions = list(session.scalars(select(Version).order_by(Version.created_ms, Version.name)))
    heads, names = _in_use(session)
    newest = {version.name.rpartition("@")[0]: version.name for version in versions}
    found: dict[str, Path] = {}
    for version in versions:
        wanted = (
            version.head in heads or version.name in names or newest[version.name.rpartition("@")[0]] == version.name
        )
        if version.tail is not None and wanted:
            found.pop(version.tail, None)  # the order is that of the newest version that has it
            found[version.tail] = Path(session.get_one(ArtefactRow, version.tail).path)
    return found


def announce_tails(store: Store, owner: str, artefacts: Iterable[str], *, now_ms: int) -> None:
    """Say which tails this server answers for; again every few seconds."""
    text = msgspec.json.encode(ServedTails(artefacts=tuple(artefacts))).decode()
    with store.write() as session:
        session.execute(delete(ConfigKey).where(ConfigKey.scope == SCOPE, ConfigKey.key == _PREFIX + owner))
        session.add(ConfigKey(scope=SCOPE, key=_PREFIX + owner, value=text, changed_ms=now_ms))


def withdraw_tails(store: Store, owner: str) -> None:
    """This server ends."""
    with store.write() as session:
        session.execute(delete(ConfigKey).where(ConfigKey.scope == SCOPE, ConfigKey.key == _PREFIX + owner))


def tail_is_served(session: Session, version: str, *, now_ms: int) -> bool:
    """Whether every server that follows the registry serves a version's tail; also true where there is none of either."""
    tail = session.get_one(Version, version).tail
    if tail is None:
        return True
    rows = session.scalars(
        select(ConfigKey.value).where(
            ConfigKey.scope == SCOPE, ConfigKey.key.startswith(_PREFIX), ConfigKey.changed_ms >= now_ms - _ALIVE_MS
        )
    )
    served = (read_record(value, ServedTails, "a server of tails") for value in rows)
    return all(tail in one.artefacts for one in served if one is not None)


def one_tail_a_key(tails: Mapping[str, Iterable[str]]) -> list[str]:
    """The tails to serve where several answer to one key (a head that stayed, with another tail): the last one.

    Args:
        tails: Keys of each tail, oldest first.
    """
    owner: dict[str, str] = {}
    for tail, keys in tails.items():
        for key in keys:
            owner[key] = tail
    kept = set(owner.values())
    return [tail for tail, keys in tails.items() if tail in kept and all(owner[key] == tail for key in keys)]


def _in_use(session: Session) -> tuple[set[str | None], set[str]]:
    """Heads and names of versions that devices run, are told to run, or would go back to."""
    models: list[Models | None] = []
    for device, text in session.execute(select(DesiredState.device, DesiredState.document)):
        desired = read_record(text, Desired, device)
        models.append(None if desired is None else desired.models)
    going = select(RolloutRow.id, RolloutRow.version).where(RolloutRow.phase.not_in(ENDED))
    rollouts = {row.id: row.version for row in session.execute(going)}
    before = select(TargetRow.before).where(TargetRow.rollout.in_(rollouts)).distinct()
    models += [read_record(text, Models, "a rollout") for text in session.scalars(before)]
    names = {*rollouts.values(), *(one.version for one in models if one is not None)}
    heads: set[str | None] = {one.head.artefact for one in models if one is not None and one.head is not None}
    for device, text in session.execute(select(ReportedState.device, ReportedState.document)):
        reported = read_record(text, Reported, device)
        heads.add(None if reported is None else reported.slots.head)
    return heads - {None}, names
