"""What people and programs write into the registry: labels, groups, artefacts, versions, keys, tokens, settings, the desired state.

Every function is one part of a transaction (`Store.write`); those that people cause append to the audit log.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from edge_runtime.messages import (
    Desired,
    MessageError,
    Setting,
    Settings,
    Topics,
    check_segment,
    decode_control,
    encode_control,
)
from orchestrator.fleet.audit import append_audit
from orchestrator.fleet.errors import ConflictError, UnknownError
from orchestrator.fleet.insert import insert_into
from orchestrator.fleet.records import say_refused
from orchestrator.fleet.selectors import parse_selector
from orchestrator.fleet.tables import (
    ArtefactRow,
    Certificate,
    ConfigKey,
    DesiredState,
    Device,
    Enrolment,
    Group,
    Key,
    Member,
    OutboxRow,
    Presence,
    ReportedState,
    Snapshot,
    Version,
)

_SENDER = os.urandom(8).hex()  # `boot` of this process's messages


def device_id(tenant: str, name: str) -> str:
    """tenant/name, both checked."""
    topics = Topics(tenant, name)
    return f"{topics.tenant}/{topics.device}"


def topics_of(device: str) -> Topics:
    """The topics of a device id."""
    tenant, _, name = device.partition("/")
    return Topics(tenant, name)


def get_device(session: Session, device: str) -> Device:
    """The row of a device.

    Raises:
        UnknownError: No such device.
    """
    row = session.get(Device, device)
    if row is None:
        raise UnknownError(
            f"Wanted the device {device!r}, found none of that name. `headtail fleet devices` lists them."
        )
    return row


def add_device(
    session: Session, device: str, *, labels: Mapping[str, str] | None = None, actor: str, now_ms: int
) -> Device:
    """Enter a device before its first birth, or change the labels of one that is there."""
    row = session.get(Device, device)
    if row is None:
        topics = topics_of(device)
        row = Device(id=device, tenant=topics.tenant, name=topics.device, created_ms=now_ms)
        session.add(row)
        append_audit(session, actor, "add", device, {"labels": dict(labels or {})}, now_ms=now_ms)
    if labels:
        set_labels(session, device, labels, actor=actor, now_ms=now_ms)
    session.flush()
    return row


def set_labels(
    session: Session,
    device: str,
    labels: Mapping[str, str],
    *,
    remove: Sequence[str] = (),
    actor: str,
    now_ms: int,
) -> None:
    """Set and remove labels; "" makes a tag."""
    row = get_device(session, device)
    for key in labels:
        check_segment("label", key)
    row.labels = {key: value for key, value in {**row.labels, **labels}.items() if key not in remove}
    append_audit(session, actor, "label", device, {"set": dict(labels), "removed": list(remove)}, now_ms=now_ms)


def block_device(session: Session, device: str, *, blocked: bool, actor: str, now_ms: int) -> None:
    """Listen to a device no more, and give it no work; or do again."""
    get_device(session, device).blocked = blocked
    append_audit(session, actor, "block" if blocked else "unblock", device, now_ms=now_ms)


def define_group(
    session: Session,
    name: str,
    *,
    devices: Sequence[str] = (),
    selector: str | None = None,
    actor: str,
    now_ms: int,
) -> None:
    """Make or replace a group.

    Raises:
        SelectorError: The selector cannot be read.
        UnknownError: A device is not in the registry.
        ConflictError: The name already stands for something else.
    """
    check_segment("group", name)
    taken = select(exists().where(Device.name == name))
    if name == "all" or session.scalar(taken):
        whose = "every device" if name == "all" else "a device"
        raise ConflictError(f"Wanted a name of its own for a group, found {name!r}, which is that of {whose}.")
    if selector is not None:
        parse_selector(selector)
    for device in devices:
        get_device(session, device)
    remove_group(session, name)
    session.add(Group(name=name, selector=selector, created_ms=now_ms))
    session.flush()
    session.add_all(Member(group_name=name, device=device) for device in dict.fromkeys(devices))
    append_audit(session, actor, "group", name, {"selector": selector, "devices": list(devices)}, now_ms=now_ms)


def remove_group(session: Session, name: str) -> None:
    """Forget a group; its devices stay."""
    session.execute(delete(Member).where(Member.group_name == name))
    session.execute(delete(Group).where(Group.name == name))


class NewArtefact(msgspec.Struct, frozen=True, kw_only=True):
    """An artefact whose .zip lies on the host and was checked."""

    id: str
    role: str
    model: str
    engine: str
    target: str
    size: int
    zip_sha256: str
    path: str
    key: str | None = None


def register_artefact(session: Session, artefact: NewArtefact, *, now_ms: int) -> None:
    """Enter an artefact; its content is its id, so entering it again changes its place alone."""
    values = {**msgspec.structs.asdict(artefact), "created_ms": now_ms}
    changed = {name: values[name] for name in ("path", "size", "zip_sha256", "key")}
    statement = insert_into(session, ArtefactRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))


def register_version(
    session: Session,
    name: str,
    *,
    head: str | None = None,
    tail: str | None = None,
    whole: str | None = None,
    agent: str | None = None,
    counter: int = 0,
    actor: str,
    now_ms: int,
) -> None:
    """Enter model@version: a head with its tail, a whole model, or all three; or a version of the agent alone.

    Raises:
        ConflictError: The version is there with other artefacts, nothing for a device is in it, or an agent with models.
        UnknownError: An artefact is not registered.
    """
    if agent is not None and (head or tail or whole):
        raise ConflictError(
            f"Wanted an agent alone in {name}, found models beside it. Register them as another version."
        )
    if head is None and whole is None and agent is None:
        raise ConflictError(f"Wanted a head or a whole model in {name}, found neither. A tail alone runs on no device.")
    for artefact in (head, tail, whole, agent):
        if artefact is not None and session.get(ArtefactRow, artefact) is None:
            raise UnknownError(f"Wanted the artefact {artefact[:16]}.. of {name}, found it is not registered.")
    there = session.get(Version, name)
    if there is not None:
        if (there.head, there.tail, there.whole, there.agent) != (head, tail, whole, agent):
            raise ConflictError(f"Wanted {name} as new, found it with other artefacts. Choose another version.")
        return
    session.add(Version(name=name, head=head, tail=tail, whole=whole, agent=agent, counter=counter, created_ms=now_ms))
    session.flush()
    detail: dict[str, object] = {"head": head, "tail": tail, "whole": whole, "counter": counter}
    if agent is not None:
        detail = {"agent": agent, "counter": counter}
    append_audit(session, actor, "version", name, detail, now_ms=now_ms)


MOST_REV = 2**52  # no fleet comes this far: a device that says so is not believed, or too few were left above


@dataclass(frozen=True)
class Held:
    """Desired states of several devices, locked, and the newest revisions that these devices say they know."""

    rows: Mapping[str, DesiredState]
    known: Mapping[str, int]


def hold_desired(session: Session, devices: Collection[str]) -> Held:
    """Lock what is there of these devices' desired states."""
    query = select(DesiredState).where(DesiredState.device.in_(devices)).order_by(DesiredState.device).with_for_update()
    fresh = query.execution_options(populate_existing=True)  # what was read before the lock may be old by now
    rows = {row.device: row for row in session.scalars(fresh)}
    known: dict[str, int] = {}
    for seen in (
        select(Presence.device, Presence.desired_rev).where(Presence.device.in_(devices)),
        select(ReportedState.device, ReportedState.rev).where(ReportedState.device.in_(devices)),
    ):
        for device, rev in session.execute(seen):
            known[device] = max(rev, known.get(device, 0))
    return Held(rows, known)


def change_desired(
    session: Session,
    device: str,
    *,
    now_ms: int,
    held: Held | None = None,
    **changes: Any,  # noqa: ANN401 - fields of Desired
) -> Desired:
    """Change fields of a device's desired state, give it the next revision, and put it into the outbox.

    The next one is above the device's own as well: it passes over what is not newer, and this database may be younger than it.

    Args:
        session: Writes.
        device: tenant/name.
        now_ms: The time.
        held: What the caller holds of all devices that it changes; it flushes.
        changes: Fields of `Desired` other than boot and rev; those not given stay.

    Raises:
        MessageError: The device would not take what comes of it; nothing is written.
    """
    found = held or hold_desired(session, [device])
    row = found.rows.get(device)
    before = Desired(boot=_SENDER, rev=0) if row is None else _read_desired(row)
    known = found.known.get(device, 0)
    rev = max(before.rev, known if known < MOST_REV else 0) + 1
    desired = msgspec.structs.replace(before, boot=_SENDER, rev=rev, **changes)
    document = encode_control(desired)
    decode_control(document, Desired)  # a struct is not checked when it is made, only when it is read
    if row is None:
        row = DesiredState(device=device)
        session.add(row)
    row.rev, row.document, row.changed_ms, row.sent_ms = desired.rev, document.decode(), now_ms, now_ms
    row.rewrite_ms = 0
    send(session, topics_of(device).desired, document, retain=True, now_ms=now_ms)
    if held is None:
        session.flush()
    return desired


def _read_desired(row: DesiredState) -> Desired:
    """What a row holds; where today's checks refuse it only its revision, or the device could never be told anything again."""
    try:
        return decode_control(row.document.encode(), Desired)
    except MessageError as error:
        say_refused(f"{error} It is desired state {row.rev} of {row.device}, which is written anew.")
        return Desired(boot=_SENDER, rev=row.rev)


def send(session: Session, topic: str, payload: bytes, *, retain: bool = False, now_ms: int) -> None:
    """Put a message into the outbox: it is published at QoS 1 after the transaction, at least once."""
    session.add(OutboxRow(topic=topic, payload=payload, retain=retain, created_ms=now_ms))


def set_config(session: Session, scope: str, key: str, value: Setting | None, *, actor: str, now_ms: int) -> None:
    """Set a key of remote configuration for "all", "group:NAME" or "device:TENANT/NAME"; null removes it.

    `refresh_config` then brings the devices' desired states in line.

    Raises:
        UnknownError: Another scope, or no such group or device.
    """
    check_segment("key", key)
    if scope != "all" and not scope.startswith(("group:", "device:")):
        raise UnknownError(f"Wanted the scope all, group:NAME or device:TENANT/NAME, found {scope!r}.")
    if value is not None:
        _check_scope(session, scope)
    session.execute(delete(ConfigKey).where(ConfigKey.scope == scope, ConfigKey.key == key))
    if value is not None:
        text = msgspec.json.encode(value).decode()
        session.add(ConfigKey(scope=scope, key=key, value=text, changed_ms=now_ms))
    session.flush()
    append_audit(session, actor, "config", scope, {"key": key, "value": value}, now_ms=now_ms)


def _check_scope(session: Session, scope: str) -> None:
    kind, _, name = scope.partition(":")
    if kind == "device":
        get_device(session, name)
    if kind == "group" and session.get(Group, name) is None:
        raise UnknownError(f"Wanted the group {name!r}, found none. `headtail fleet groups` lists them.")


def config_for(session: Session, device: str, groups: Sequence[str]) -> Settings:
    """The keys that hold for a device: those of all, of its groups in their order, of itself; later ones win."""
    scopes = ["all", *(f"group:{name}" for name in sorted(groups)), f"device:{device}"]
    rows = session.scalars(select(ConfigKey).where(ConfigKey.scope.in_(scopes)))
    ordered = sorted(rows, key=lambda row: scopes.index(row.scope))
    return {row.key: msgspec.json.decode(row.value) for row in ordered}


def register_key(session: Session, key: str, role: str, public: str, *, actor: str, now_ms: int) -> None:
    """Enter a public key whose signatures count."""
    there = session.get(Key, key)
    if there is None:
        session.add(Key(id=key, role=role, public=public, created_ms=now_ms))
        append_audit(session, actor, "key", key, {"role": role}, now_ms=now_ms)
    elif (there.role, there.public) != (role, public):
        raise ConflictError(f"Wanted the key {key[:16]}.. as {role}, found it registered as {there.role}.")


def revoke_key(session: Session, key: str, *, actor: str, now_ms: int) -> None:
    """Signatures of this key count no more."""
    row = session.get(Key, key)
    if row is None:
        raise UnknownError(f"Wanted the key {key[:16]!r}, found none of that id.")
    row.revoked_ms = row.revoked_ms or now_ms
    append_audit(session, actor, "revoke-key", key, now_ms=now_ms)


def add_enrolment(session: Session, enrolment: Enrolment, *, actor: str) -> None:
    """Keep the hash of a token that was handed out."""
    session.add(enrolment)
    detail: dict[str, object] = {"expires_ms": enrolment.expires_ms, "labels": enrolment.labels}
    append_audit(session, actor, "token", enrolment.device or enrolment.tenant, detail, now_ms=enrolment.created_ms)


def use_enrolment(session: Session, token_sha256: str, device: str, *, now_ms: int) -> Enrolment:
    """Take a token, once, for a device that then is in the registry.

    Raises:
        UnknownError: No such token, used, expired, or for another device; the message does not say which.
    """
    query = select(Enrolment).where(Enrolment.token_sha256 == token_sha256).with_for_update()
    row = session.scalars(query).first()
    tenant = device.partition("/")[0]
    usable = row is not None and row.used_ms is None and row.expires_ms > now_ms and row.tenant == tenant
    if row is None or not usable or row.device not in (None, device):
        raise UnknownError(f"Wanted a token that is good for {device}, found none. Ask for a new one.")
    row.used_ms, row.used_by = now_ms, device
    add_device(session, device, labels=row.labels, actor=f"device:{device}", now_ms=now_ms)
    append_audit(session, f"device:{device}", "enrol", device, {"token": token_sha256[:16]}, now_ms=now_ms)
    return row


def register_certificate(session: Session, certificate: Certificate, *, actor: str, now_ms: int) -> None:
    """Note a certificate that was given out."""
    session.add(certificate)
    append_audit(session, actor, "certificate", certificate.device, {"serial": certificate.serial}, now_ms=now_ms)


def add_snapshot(session: Session, scope: str, figures: Mapping[str, float], *, now_ms: int) -> None:
    """Keep figures for the dashboard's charts; scope is "fleet", "device:ID" or "model:NAME"."""
    session.add(Snapshot(at_ms=now_ms, scope=scope, figures=dict(figures)))


def drop_snapshots(session: Session, *, before_ms: int) -> None:
    """Forget old figures."""
    session.execute(delete(Snapshot).where(Snapshot.at_ms < before_ms))
