"""A fleet with certificates, from nothing to a device that runs a signed model, by the commands of docs/fleet.md."""

import contextlib
import datetime
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Timestamp

from edge_runtime.artefact import write_artefact
from edge_runtime.broker_url import tls_url
from edge_runtime.identity import broker_urls, read_identity
from edge_runtime.messages import Topics, fleet_filters, requests_filter
from edge_runtime.mqtt import LinkOptions, MqttLink, NotConnectedError, Packet
from edge_runtime.tail_messages import HOST_TENANT
from orchestrator.broker import free_port
from orchestrator.broker_access import DISCOVERY
from orchestrator.cli import run
from orchestrator.fleet import queries
from orchestrator.fleet.fleet_file import read_fleet_file
from orchestrator.fleet.freshness import check_published
from orchestrator.fleet.store import Store, now_ms
from orchestrator.pki import ONLINE_KEY, Authority
from orchestrator.signing import read_key

DOCS = Path(__file__).parents[3] / "docs" / "fleet.md"
PROGRAMS = {"headtail": "orchestrator.cli", "edge-agent": "edge_runtime.cli"}
PATIENCE_S = 30
KEY, BOOT = "0123456789abcdef", "fedcba9876543210"


class Walk:
    """Runs the commands of the page in a folder, with this machine in place of fleet.example and free ports."""

    def __init__(self, folder, stack):
        self.folder, self._stack = folder, stack
        self.ports = {name: str(free_port()) for name in ("device", "service", "enrol", "files", "dashboard")}

    def commands(self, part):
        text = DOCS.read_text()
        block = re.search(rf"<!-- commands: {part} -->\n```\n(.*?)```", text, re.DOTALL)
        assert block, part
        lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
        return [self._adapt(words) for words in lines if words]

    def _adapt(self, words):
        host = {"fleet.example": "127.0.0.1", "0.0.0.0": "127.0.0.1"}
        words = [
            host.get(word, word.replace("fleet.example:8885", f"127.0.0.1:{self.ports['enrol']}")) for word in words
        ]
        program = [sys.executable, "-c", f"from {PROGRAMS[words[0]]} import main; main()"]
        if words[:3] == ["headtail", "fleet", "up"]:
            words += [word for name, port in self.ports.items() for word in (f"--{name}-port", port)]
        if words[1] == "fleet" or words[1] == "deploy":
            words += ["--folder", str(self.folder / "fleet")]
        if words[1] == "deploy" or words[1:3] == ["fleet", "rollout"]:
            words += ["--probation", "1"]
            words = ["1" if before == "--soak" else word for before, word in zip(["", *words], words, strict=False)]
        if words[0] == "edge-agent":
            words += ["--state", str(self.folder / "device")]
        return [*program, *words[1:]]

    def do(self, part, given=None):
        said = ""
        for command in self.commands(part):
            done = subprocess.run(command, cwd=self.folder, input=given, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            said += done.stdout
        return said

    def join(self, name):
        """Enrol another device; its two broker URLs."""
        (token,), (enroll, _) = self.commands("token"), self.commands("device")
        made = subprocess.run([*token[:-1], name], cwd=self.folder, capture_output=True, text=True, timeout=60)
        command = [*(name if word == "pi-1" else word for word in enroll[:-1]), str(self.folder / name)]
        done = subprocess.run(command, cwd=self.folder, input=made.stdout, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (made.stderr, done.stderr)
        return broker_urls(read_identity(self.folder / name), self.folder / name)

    def begin(self, command, log):
        output = self._stack.enter_context((self.folder / log).open("wb"))
        process = subprocess.Popen(command, cwd=self.folder, stdout=output, stderr=output)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process


def until(condition, *, seconds=60, why=lambda: ""):
    pause = threading.Event()
    for _ in range(10 * seconds):
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError(f"did not come about in time {why()}")


@pytest.fixture(scope="module")
def walked(tmp_path_factory, network):
    """The page's walk up to a device that runs a signed model."""
    folder = tmp_path_factory.mktemp("walk")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # mosquitto gives up root, and reads its certificates
    with contextlib.ExitStack() as stack:
        walk = Walk(folder, stack)
        walk.do("host")
        (up,) = walk.commands("up")
        walk.begin(up, "up.log")
        until(lambda: b"devices enrol at" in (folder / "up.log").read_bytes(), why=(folder / "up.log").read_text)
        enrolment = folder / "fleet" / "logs" / "enrolment.log"
        until(lambda: b"devices enrol at" in enrolment.read_bytes(), why=enrolment.read_text)
        token = walk.do("token")
        enroll, run_agent = walk.commands("device")
        done = subprocess.run(enroll, cwd=folder, input=token, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        walk.begin(run_agent, "agent.log")
        with contextlib.closing(Store(read_fleet_file(folder / "fleet").store)) as store:
            walk.store = store
            until(lambda: len(devices(store)) == 1, why=(folder / "agent.log").read_text)
            shutil.copytree(network.whole.folder, folder / "build" / "whole")
            walk.said = walk.do("deploy")
            yield walk


def devices(store):
    with store.read() as session:
        return queries.list_devices(session, now_ms=now_ms())


def test_the_page_leads_to_a_device_that_runs_a_signed_model(walked, network, capsys, caplog):
    (view,) = devices(walked.store)
    assert view.id == "default/pi-1"
    assert view.reported.slots.whole == network.whole.id
    assert view.desired.models.whole.url.startswith("https://"), (
        "fetched from the fleet's own server, by its certificates"
    )
    assert "KEY" not in (walked.folder / "up.log").read_text()
    tails = (walked.folder / "fleet" / "logs" / "tails.log").read_text()
    assert "serving nothing yet through mqtts://" in tails, "with the certificate of tails, ready for the first pair"
    fleet = ["--folder", str(walked.folder / "fleet")]
    assert run(["fleet", "doctor", "--as-device", walked.join("pi-3")[0], *fleet]) == 0
    assert "lost the broker" not in caplog.text, "it wanted to be refused"
    said = " ".join(capsys.readouterr().out.split())
    assert "nobody connects without credentials" in said
    assert "a device reaches its own topics alone" in said


def test_the_page_leads_to_a_device_whose_agent_has_replaced_itself(walked, capsys):
    walked.do("agent")
    (view,) = [view for view in devices(walked.store) if view.id == "default/pi-1"]
    with walked.store.read() as session:
        (version,) = [one for one in queries.list_versions(session) if one.agent is not None]
    assert version.name == "agent@2"
    assert view.birth.agent_artefact == version.agent
    assert version.devices == 1
    assert view.slots.whole is not None, "its model runs on"
    assert run(["fleet", "devices", "pi-1", "--folder", str(walked.folder / "fleet")]) == 0
    assert version.agent[:8] in capsys.readouterr().out


def test_a_rollout_of_what_the_metadata_does_not_vouch_for_leaves_the_device_as_it_is(walked, network, tmp_path, capfd):
    seen = walked.folder / "device" / "tuf" / "metadata" / "timestamp.json"
    assert seen.is_file(), "the walk's device asked before it took the model"
    names = network.whole.manifest.files_by_path
    files = {path: network.whole.path(path).read_bytes() for path in names}
    manifest = msgspec.structs.replace(network.whole.manifest, files=())
    other = write_artefact(walked.folder / "build" / "other", manifest, {**files, "name": b"other"})
    (sign, _) = walked.commands("deploy")
    done = subprocess.run(
        [str(other.folder) if word == "build/whole" else word for word in sign], cwd=walked.folder, timeout=60
    )
    assert done.returncode == 0
    published = walked.folder / "fleet" / "tuf"
    check_published(published, [other])
    timestamp = Metadata[Timestamp].from_bytes((published / "timestamp.json").read_bytes())
    timestamp.signed.version += 1
    timestamp.signed.expires = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1)
    timestamp.sign(CryptoSigner(read_key(walked.folder / "pki" / ONLINE_KEY)))
    (published / "timestamp.json").write_bytes(timestamp.to_bytes())  # as if nobody had signed anew for a day
    folder = ["--folder", str(walked.folder / "fleet")]
    assert run(["deploy", str(other.folder), "--to", "pi-1", "--probation", "1", *folder]) == 1
    (view,) = [one for one in devices(walked.store) if one.name == "pi-1"]
    assert view.reported.slots.whole == network.whole.id
    assert run(["fleet", "jobs", "--json", *folder]) == 0
    assert "FrozenError" in capfd.readouterr().out


class Heard:
    """A link, and the topics of what it received."""

    def __init__(self, url, *filters):
        self.topics, self.link = (
            set(),
            MqttLink(url, LinkOptions(subscriptions=tuple((one, 1) for one in filters)), self.take),
        )

    def take(self, topic, _payload, _qos):
        self.topics.add(topic)

    def __enter__(self):
        self.link.start().wait_connected(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self.link.close()


def test_every_topic_of_today_reaches_who_needs_it_and_nobody_else(walked):
    port, authority = int(walked.ports["service"]), Authority(walked.folder / "pki")
    names = ("orchestrator", "tails", "llm", "homeassistant")
    host, tails, llm, home = (tls_url("127.0.0.1", port, authority.files(name)) for name in names)
    control, offload = walked.join("pi-2")
    mine, worker = Topics("default", "pi-2"), Topics(HOST_TENANT, "tail-1-0")
    ups = [mine.up(kind) for kind in ("birth", "death", "hb", "result", "reported", "job", "deploy", "sample", "llm")]
    plan = Topics("default", "master-1").up("llm-plan")
    downs = [mine.desired, mine.job, mine.deploy, mine.rollback, mine.block(BOOT)]
    asked, answered, beat = mine.request(KEY, BOOT), mine.reply(BOOT), worker.up("tail")
    found = f"{DISCOVERY}/device/headtail_default_pi-2/config"
    everything = ("ht/v1/#", f"{DISCOVERY}/#")
    with (
        Heard(host, *(one for one, _ in fleet_filters()), "ht/v1/+/+/up/#", *everything) as orchestrator,
        Heard(tails, requests_filter(KEY), *everything) as tail,
        Heard(home, *everything) as assistant,
        Heard(llm, *everything) as master,
        Heard(control, *everything) as device,
        Heard(offload, *everything) as sender,
        Heard(walked.join("pi-4")[1], *everything) as stranger,
    ):
        for who, topics in (
            (device, [*ups, *downs, asked, answered, beat, found]),  # what it may not say is dropped by the broker
            (sender, [asked, beat, *ups, answered]),
            (orchestrator, [*downs, found]),
            (tail, [answered, beat, *downs]),
            (assistant, [*ups, *downs, plan]),
            (master, [plan, *ups, *downs, asked]),
        ):
            for topic in topics:
                who.link.publish(Packet(topic, b"{}", 1))
        until(lambda: beat in orchestrator.topics and asked in tail.topics and answered in sender.topics)
        until(lambda: set(ups) <= orchestrator.topics and set(downs) <= device.topics)
        until(lambda: {found, mine.up("hb")} <= assistant.topics and mine.up("llm") in master.topics)
        until(lambda: plan in orchestrator.topics)

        def of_mine(heard):
            return {one for one in heard.topics if "pi-1" not in one}

        assert of_mine(orchestrator) == {*ups, beat, plan}
        assert of_mine(tail) == {asked}
        assert of_mine(assistant) == {found, mine.up("hb")}
        assert of_mine(master) == {mine.up("llm")}
        assert of_mine(device) == set(downs)
        assert of_mine(sender) == {answered}
        assert of_mine(stranger) == set()


def test_a_revoked_device_is_refused_without_a_word_to_the_broker(walked):
    control, _ = walked.join("pi-5")
    pid = read_fleet_file(walked.folder / "fleet").pid
    assert run(["pki", "revoke", str(walked.folder / "pki"), "--device", "pi-5"]) == 0

    def refused():
        with MqttLink(control, LinkOptions(), lambda *_: None) as link:
            try:
                link.wait_connected(1)
            except NotConnectedError:
                return True
            return False

    until(refused, seconds=5)
    assert read_fleet_file(walked.folder / "fleet").pid == pid
