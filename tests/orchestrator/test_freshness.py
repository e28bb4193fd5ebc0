"""TUF metadata of a fleet: signed offline and online, served over HTTP, and what a device refuses by which name."""

import contextlib
import datetime
import shutil
import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.artefact import open_artefact, write_artefact
from edge_runtime.cli import main as agent_command
from edge_runtime.fetch import FetchOptions
from edge_runtime.freshness import (
    SIGNED_AT,
    Anchor,
    AnchorError,
    ClockError,
    Freshness,
    FreshnessError,
    FrozenError,
    MetadataMismatchError,
    MetadataRollbackError,
    MetadataSignatureError,
    MetadataUnreachableError,
    TargetMismatchError,
    UnlistedError,
    install_anchor,
    open_freshness,
)
from edge_runtime.gate import Gatekeeper, install_trust
from edge_runtime.probation import ProbationOptions
from edge_runtime.signature import Statement, UnsignedError, parse_signature
from edge_runtime.slots import SlotStore
from orchestrator.artefact_server import ArtefactServer
from orchestrator.cli import run
from orchestrator.deploy import RejectedError, deploy
from orchestrator.fleet.freshness import Publisher, check_published
from orchestrator.signing import first_trust, make_key, read_key, rotate, sign_artefact
from orchestrator.update_repository import UpdateRepository, UpdateRepositoryError

HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def statement(number, counter=1, floor=0):
    return Statement(artefact=f"{number:064x}", line="tiny whole", counter=counter, floor=floor)


V1, V2, V3 = (statement(number, number) for number in (1, 2, 3))


class Fleet:
    """Holders' folder, published folder, keys; `ask` is a device over real HTTP."""

    def __init__(self, folder, url, *, holders=("alice",), threshold=1):
        self.folder, self.url, self.now = folder, url, NOW - 20 * HOUR
        self.source, self.published, self.state = folder / "source", folder / "published", folder / "state"
        self.public = {name: make_key(folder / f"{name}.pem", name=name) for name in (*holders, "online", "other")}
        self.keys = {name: read_key(folder / f"{name}.pem") for name in self.public}
        self.trust = first_trust([self.public[name] for name in holders], threshold)
        self.holders = [self.keys[name] for name in holders]
        self.repository.update_root(self.trust.newest, self.public["online"], self.holders)
        self.publisher = self.publisher_of("online")

    @property
    def repository(self):
        return UpdateRepository(self.source, now=self.now)

    def publisher_of(self, key):
        return Publisher(self.source, self.published, self.keys[key], clock=lambda: self.now)

    def publish(self, *statements, keys=None):
        for one in statements:
            self.repository.list_statement(one, self.holders if keys is None else keys)
        self.publisher.keep()

    def enrol(self):
        install_anchor(self.state, Anchor(url=self.url, root=self.repository.newest_root().decode()))

    def ask(self, wanted, now=None):
        clock = {} if now is None else {"clock": lambda: now}
        Freshness(self.state, FetchOptions(give_up_s=0), **clock).check(wanted)

    def sign(self, name, signed, key):
        """Write metadata as somebody would who holds that key."""
        made = Metadata(signed)
        made.sign(CryptoSigner(self.keys[key]))
        (self.published / name).write_bytes(made.to_bytes())
        return (self.published / name).read_bytes()

    def timestamp(self, version, snapshot, key="online", expires=None):
        meta = MetaFile.from_data(Metadata[Snapshot].from_bytes(snapshot).signed.version, snapshot, ["sha256"])
        more = {SIGNED_AT: NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}
        until = expires or NOW + DAY
        self.sign(
            "timestamp.json",
            Timestamp(version=version, expires=until, snapshot_meta=meta, unrecognized_fields=more),
            key,
        )

    def newest(self, role):
        path = max(self.published.glob(f"*.{role}.json"), key=lambda one: int(one.name.split(".")[0]))
        return path, Metadata.from_bytes(path.read_bytes()).signed


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose published folder is a link, and that link."""
    folder = tmp_path_factory.mktemp("server")
    with ArtefactServer(folder / "artefacts", metadata=folder / "published") as running:
        yield running, folder / "published"


@pytest.fixture
def served(server, tmp_path):
    """URL under which this test's published folder is served."""
    running, link = server
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "published")
    return running.metadata_url


@pytest.fixture
def fleet(tmp_path, served):
    """One holder, two versions listed, one device enrolled."""
    made = Fleet(tmp_path, served)
    made.publish(V1, V2)
    made.enrol()
    return made


def test_what_is_listed_is_taken_and_nothing_else(fleet):
    fleet.ask(V1)
    fleet.ask(V2)
    with pytest.raises(UnlistedError):
        fleet.ask(V3)
    with pytest.raises(TargetMismatchError, match="floor 7"):
        fleet.ask(statement(2, counter=9, floor=7))
    fleet.publish(V3)
    fleet.ask(V3)
    fleet.repository.withdraw(V2.artefact, fleet.holders)
    fleet.publisher.keep()
    with pytest.raises(UnlistedError):
        fleet.ask(V2)
    with pytest.raises(UpdateRepositoryError, match="found 0"):
        fleet.repository.withdraw(V2.artefact, fleet.holders)


def test_metadata_that_is_not_signed_anew_freezes_no_device_unseen(fleet):
    fleet.ask(V1)
    fleet.now = NOW - 3 * DAY
    shutil.rmtree(fleet.published)
    fleet.publisher_of("online").keep()  # as it was three days ago
    (fleet.state / "tuf" / "metadata" / "timestamp.json").unlink()
    with pytest.raises(FrozenError, match=r"timestamp\.json is expired .* withholds"):
        fleet.ask(V1)
    fleet.now = NOW
    assert fleet.publisher_of("online").keep()
    fleet.ask(V1)


@pytest.mark.parametrize(("age_days", "role"), [(800, "root"), (400, "targets")])
def test_offline_metadata_expires_too(tmp_path, served, age_days, role):
    (tmp_path / "old").mkdir()
    old = Fleet(tmp_path / "old", served)
    shutil.rmtree(old.source)
    old.now = NOW - age_days * DAY
    old.repository.update_root(old.trust.newest, old.public["online"], old.holders)
    old.repository.list_statement(V1, old.holders)
    old.published, old.now = tmp_path / "published", NOW
    old.publisher_of("online").keep()
    old.enrol()
    with pytest.raises(FrozenError, match=role):
        old.ask(V1)


def test_older_metadata_than_a_device_has_seen_is_refused(fleet, tmp_path):
    fleet.ask(V1)
    before = shutil.copytree(fleet.published, tmp_path / "before")
    _, snapshot = fleet.newest("snapshot")
    fleet.now += HOUR
    fleet.publish(V3)
    fleet.ask(V3)
    assert fleet.newest("snapshot")[1].version > snapshot.version
    shutil.copytree(before, fleet.published, dirs_exist_ok=True)
    with pytest.raises(MetadataRollbackError, match="timestamp"):
        fleet.ask(V1)
    fleet.timestamp(2**40, (before / f"{snapshot.version}.snapshot.json").read_bytes())  # the online key was stolen
    with pytest.raises(MetadataRollbackError, match="snapshot"):
        fleet.ask(V1)
    meta = {"targets.json": snapshot.meta["targets.json"]}
    stolen = fleet.sign(f"{2**41}.snapshot.json", Snapshot(version=2**41, expires=NOW + DAY, meta=meta), "online")
    fleet.timestamp(2**41, stolen)
    with pytest.raises(MetadataRollbackError, match=r"targets\.json"):
        fleet.ask(V1)


def test_files_that_do_not_belong_together_are_refused(fleet, tmp_path):
    path, _ = fleet.newest("snapshot")
    before = path.read_bytes()
    fleet.now += HOUR
    fleet.publish(V3)
    path, _ = fleet.newest("snapshot")
    after = path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(MetadataMismatchError):
        fleet.ask(V1)
    path.write_bytes(after)
    targets, _ = fleet.newest("targets")
    content = targets.read_bytes()
    targets.write_bytes(content.replace(V3.artefact.encode(), V2.artefact[:-1].encode() + b"f"))
    with pytest.raises(MetadataMismatchError):
        fleet.ask(V1)
    targets.write_bytes(content)
    fleet.ask(V3)


def test_who_may_not_sign_is_refused(fleet):
    path, _ = fleet.newest("snapshot")
    fleet.timestamp(2**40, path.read_bytes(), key="other")
    with pytest.raises(MetadataSignatureError, match="timestamp"):
        fleet.ask(V1)
    fleet.timestamp(2**40, path.read_bytes(), key="alice")
    with pytest.raises(MetadataSignatureError, match="timestamp"):
        fleet.ask(V1)


def test_the_host_alone_lists_nothing_and_one_of_two_holders_neither(tmp_path, served):
    fleet = Fleet(tmp_path, served, holders=("alice", "bob"), threshold=2)
    fleet.publish(V1)
    fleet.enrol()
    fleet.ask(V1)
    fleet.publish(V2, keys=[fleet.keys["alice"]])
    assert [one.complete for one in fleet.repository.progress()] == [True, False]
    with pytest.raises(UnlistedError):
        fleet.ask(V2)  # what waits for another signature is not published
    for name in ("alice", "online"):  # published all the same, by whoever holds the host
        targets = Metadata[Targets].from_bytes((fleet.source / "3.targets.json").read_bytes())
        targets.signed.version += 10
        data = fleet.sign(f"{targets.signed.version}.targets.json", targets.signed, name)
        meta = {"targets.json": MetaFile.from_data(targets.signed.version, data, ["sha256"])}
        version = 2**40 + (name == "online")
        stolen = fleet.sign(
            f"{version}.snapshot.json", Snapshot(version=version, expires=NOW + DAY, meta=meta), "online"
        )
        fleet.timestamp(version, stolen)
        with pytest.raises(MetadataSignatureError, match="targets"):
            fleet.ask(V2)
    shutil.rmtree(fleet.state / "tuf" / "metadata")
    shutil.rmtree(fleet.published)
    fleet.publisher = fleet.publisher_of("online")
    fleet.publish(V2, keys=[fleet.keys["bob"]])
    fleet.ask(V2)


def test_a_device_follows_the_root_over_several_changes_of_keys(fleet):
    fleet.ask(V1)
    alice, other = fleet.public["alice"], fleet.public["other"]
    trust = rotate(fleet.trust, [alice, other], 2, [fleet.keys["alice"], fleet.keys["other"]])
    both = [fleet.keys["alice"], fleet.keys["other"]]
    fleet.repository.update_root(trust.newest, None, both)
    trust = rotate(trust, [other], 1, both)
    fleet.repository.update_root(trust.newest, None, both)
    public = make_key(fleet.folder / "online2.pem", name="online2")
    fleet.keys["online2"] = read_key(fleet.folder / "online2.pem")
    assert fleet.repository.update_root(trust.newest, public, [fleet.keys["other"]])[0].version == 4
    with pytest.raises(UpdateRepositoryError, match="online key that root 4 names"):
        fleet.publisher.keep()
    fleet.publisher, fleet.holders = fleet.publisher_of("online2"), [fleet.keys["other"]]
    fleet.publish(V3)
    fleet.ask(V3)
    assert sorted(path.name for path in (fleet.state / "tuf" / "metadata" / "root_history").iterdir()) == [
        f"{n}.root.json" for n in (1, 2, 3, 4)
    ]
    with pytest.raises(UpdateRepositoryError, match="not in it"):
        fleet.repository.list_statement(V3, [fleet.keys["online"]])
    (fleet.published / "5.root.json").write_bytes((fleet.published / "4.root.json").read_bytes())
    with pytest.raises(MetadataRollbackError):
        fleet.ask(V3)


def test_a_root_that_the_old_keys_have_not_signed_changes_nothing(fleet, tmp_path):
    trust = first_trust([fleet.public["other"]], 1)
    progress = fleet.repository.update_root(trust.newest, None, [fleet.keys["other"]])
    assert not progress[0].complete
    fleet.now += 13 * HOUR
    assert fleet.publisher.keep(), "the root before goes on"
    assert not (fleet.published / "2.root.json").exists()
    assert fleet.repository.newest_root() == (fleet.source / "1.root.json").read_bytes()
    shutil.copy(fleet.source / "2.root.json", fleet.published)
    with pytest.raises(MetadataSignatureError, match="root"):
        fleet.ask(V1)
    assert fleet.repository.update_root(trust.newest, None, [fleet.keys["alice"]])[0].complete
    (fleet.published / "2.root.json").unlink()
    fleet.publisher.keep()
    assert (fleet.published / "2.root.json").exists()
    fleet.ask(V1)


def test_a_clock_that_is_behind_is_said_to_be(fleet):
    with pytest.raises(ClockError, match=r"1970-01-01T00:00:00Z\. Set the clock"):
        fleet.ask(V1, now=datetime.datetime.fromtimestamp(0, datetime.timezone.utc))
    fleet.ask(V1, now=NOW - datetime.timedelta(minutes=1))


def test_without_metadata_nothing_is_taken(fleet):
    shutil.rmtree(fleet.published)
    with pytest.raises(MetadataUnreachableError, match="status 404"):
        fleet.ask(V1)
    fleet.url = "http://127.0.0.1:9/tuf"  # discard: nobody listens
    fleet.enrol()
    with pytest.raises(MetadataUnreachableError, match="refused"):
        fleet.ask(V1)


def test_a_server_that_comes_back_costs_time_alone(fleet):
    hidden = fleet.published.rename(fleet.folder / "hidden")
    timer = threading.Timer(0.3, lambda: hidden.rename(fleet.published))
    timer.start()
    Freshness(fleet.state, FetchOptions(give_up_s=20)).check(V1)
    timer.join()


def test_metadata_that_a_power_cut_tore_is_fetched_again(fleet):
    fleet.ask(V1)
    seen = fleet.state / "tuf" / "metadata"
    for path in [*seen.glob("*.json"), *seen.glob("root_history/*")]:
        content = path.read_bytes()
        for torn in (b"", content[: len(content) // 2]):
            path.write_bytes(torn)
            fleet.ask(V1)
            assert path.read_bytes() == content


def test_a_damaged_anchor_takes_nothing_and_another_root_forgets_what_was_seen(fleet):
    fleet.ask(V1)
    seen = fleet.state / "tuf" / "metadata"
    fleet.enrol()
    assert seen.exists()
    install_anchor(fleet.state, Anchor(url=fleet.url, root="{}"))
    assert not seen.exists()
    with pytest.raises(AnchorError, match="valid"):
        fleet.ask(V1)
    (fleet.state / "tuf" / "anchor.json").write_text("{")
    with pytest.raises(AnchorError, match="Enrol it again"):
        fleet.ask(V1)
    assert open_freshness(fleet.state, "mqtt://127.0.0.1") is not None
    assert open_freshness(fleet.folder, "mqtt://127.0.0.1") is None
    fleet.enrol()
    fleet.ask(V1)


@given(data=st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda one: st.lists(one, max_size=3) | st.dictionaries(st.sampled_from(["signed", "signatures", "_type", "version", "meta", "expires", "x"]), one, max_size=4), max_leaves=12).map(msgspec.json.encode), name=st.sampled_from(["timestamp.json", "2.root.json", "snapshot"]))  # fmt: skip
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_server_sends_ends_in_a_named_error(fleet, data, name):
    path = fleet.newest("snapshot")[0] if name == "snapshot" else fleet.published / name
    before = path.read_bytes() if path.exists() else None
    shutil.rmtree(fleet.state / "tuf" / "metadata", ignore_errors=True)
    path.write_bytes(data)
    try:
        with pytest.raises(FreshnessError):
            fleet.ask(V1)
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_the_timestamp_is_signed_anew_before_it_expires_and_never_goes_back(fleet):
    def version():
        return Metadata[Timestamp].from_bytes((fleet.published / "timestamp.json").read_bytes()).signed.version

    first = version()
    assert not fleet.publisher.keep()
    fleet.now += 11 * HOUR
    assert not fleet.publisher.keep()
    fleet.now += 2 * HOUR
    assert fleet.publisher.keep()
    second, snapshot = version(), fleet.newest("snapshot")[1].version
    assert second > first
    assert fleet.newest("targets")[1].version == 3
    shutil.rmtree(fleet.published)
    fleet.now += HOUR
    assert fleet.publisher_of("online").keep(), "the folder was lost"
    assert version() > second
    fleet.now += 20 * DAY
    assert fleet.publisher_of("online").keep()
    assert fleet.newest("snapshot")[1].version > snapshot
    (fleet.published / "timestamp.json").write_bytes(b"{")
    assert fleet.publisher_of("online").keep(), "a damaged one is made anew"


def test_two_holders_sign_by_commands_one_after_the_other(tmp_path, network, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(network.whole.folder, tmp_path / "whole")
    for name in ("alice", "bob", "online"):
        assert run(["keys", "new", f"{name}.pem"]) == 0
    assert run(["keys", "trust", "alice.pub", "bob.pub", "--threshold", "2"]) == 0
    assert run(["keys", "root", "tuf", "--online", "online.pub", "--key", "alice.pem"]) == 0
    assert "NOT complete" in capsys.readouterr().out
    assert run(["keys", "root", "tuf", "--key", "bob.pem", "--json"]) == 0
    assert all(one["complete"] for one in msgspec.json.decode(capsys.readouterr().out))
    publisher = Publisher(tmp_path / "tuf", tmp_path / "published", read_key(tmp_path / "online.pem"))
    assert run(["sign", str(folder), "--key", "alice.pem", "--tuf", "tuf"]) == 0
    publisher.keep()
    with pytest.raises(UpdateRepositoryError, match="devices would refuse it"):
        check_published(tmp_path / "published", [open_artefact(folder)], wait_s=0)
    assert run(["sign", str(folder), "--key", "bob.pem", "--tuf", "tuf"]) == 0
    publisher.keep()
    check_published(tmp_path / "published", [open_artefact(folder)], wait_s=0)
    assert "targets 2: 2 signature(s), 2 needed, complete, lists 1 version(s)" in capsys.readouterr().out
    sign_artefact(open_artefact(folder), [read_key(tmp_path / "alice.pem")])
    assert run(["keys", "withdraw", "tuf", network.whole.id[:12], "--key", "alice.pem", "--key", "bob.pem"]) == 0
    assert "lists 0 version(s)" in capsys.readouterr().out
    assert run(["keys", "root", "elsewhere", "--key", "alice.pem"]) == 1
    assert "--online" in capsys.readouterr().err


def test_an_agent_takes_what_is_listed_refuses_the_rest_by_name_and_runs_on(fleet, broker, network, tmp_path):
    def make(name, number, **more):
        manifest = msgspec.structs.replace(network.whole.manifest, files=())
        files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
        made = write_artefact(tmp_path / name, manifest, {**files, "name": name.encode()})
        sign_artefact(made, fleet.holders, counter=number, **more)
        return made, parse_signature((made.folder / "manifest.sig").read_bytes()).statement

    install_trust(fleet.state / "trust.json", fleet.trust)
    (good, listed), (fresh, later), (other, _), (known, _) = (make(f"m{n}", n) for n in (1, 2, 3, 4))
    fleet.publish(listed, later, msgspec.structs.replace(listed, artefact=known.id))
    options = AgentOptions(broker=broker, device="fresh1", state=fleet.state, probation=ProbationOptions(seconds=0.0))

    @contextlib.contextmanager
    def running():
        agent = Agent(options)
        thread = threading.Thread(target=agent.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            agent.stop()
            thread.join(10)

    def refused(artefact):
        with pytest.raises(RejectedError) as told:
            deploy(broker, "fresh1", artefact)
        assert SlotStore(fleet.state).active.whole == good.id
        return told.value.code

    with running():
        assert deploy(broker, "fresh1", good).state in ("active", "committed")
        assert refused(other) == "UnlistedError"
        assert refused(known) == "TargetMismatchError"
        path, _ = fleet.newest("snapshot")
        fleet.timestamp(2**40, path.read_bytes(), expires=NOW - HOUR)
        assert refused(fresh) == "FrozenError"
        fleet.timestamp(2**40, path.read_bytes(), key="other")
        assert refused(fresh) == "MetadataSignatureError"
    shutil.rmtree(fleet.published)
    with running():  # nobody is asked for what runs already
        birth = SlotStore(fleet.state)
        assert (birth.active.whole, birth.problem) == (good.id, None)
        fleet.now += HOUR
        fleet.publisher_of("online").keep()
        assert deploy(broker, "fresh1", fresh).state in ("active", "committed")


def test_a_device_with_a_root_and_no_key_set_takes_nothing(fleet):
    gate = Gatekeeper(fleet.state, "this", unsigned=True, fresh=open_freshness(fleet.state, "mqtt://127.0.0.1"))
    with pytest.raises(UnsignedError, match="beside the TUF root"):
        gate.check_version(gate.ask_for(V1.artefact, None), {})


def test_a_root_is_given_to_a_device_by_hand(fleet, tmp_path, capsys):
    state = tmp_path / "by-hand"
    (tmp_path / "trust.json").write_bytes(msgspec.json.encode(fleet.trust))
    words = ["trust", str(tmp_path / "trust.json"), "--state", str(state)]
    with pytest.raises(SystemExit):
        agent_command([*words, "--root", str(fleet.source / "1.root.json")])
    assert "--metadata together" in capsys.readouterr().err
    assert not state.exists()
    with pytest.raises(SystemExit) as ended:
        agent_command([*words, "--root", str(fleet.source / "1.root.json"), "--metadata", fleet.url])
    assert ended.value.code == 0
    open_freshness(state, "mqtt://127.0.0.1")(V1)
