"""An agent that replaces itself: real processes, a real broker, bundles that are good, broken, slow, foreign or old."""

import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from device_profiles.version import __version__
from edge_runtime.agent_bundle import LINE, SITE, find_damage
from edge_runtime.agent_options import Launched
from edge_runtime.agent_slots import AgentPointer, AgentProbation, AgentSlots
from edge_runtime.artefact import pack_artefact
from edge_runtime.gate import Gatekeeper, install_trust
from edge_runtime.launcher import choose
from edge_runtime.messages import (
    INSTALLED,
    ArtefactRef,
    Birth,
    Desired,
    Reported,
    Topics,
    decode_control,
    encode_control,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.self_update import NotSupportedError, SelfUpdate
from edge_runtime.signature import RollbackError
from orchestrator.agent_bundle import BundleError, bundle_installed, bundle_wheels, open_any, write_bundle
from orchestrator.artefact_server import ArtefactServer
from orchestrator.signing import first_trust, make_key, read_key, sign_artefact

PATIENCE_S = 80
WATCHED = "import os\nif 'HEADTAIL_WATCHER' in os.environ:\n    "  # true in an agent that was started on probation


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The files of the agent that is installed here."""
    folder = bundle_installed(tmp_path_factory.mktemp("base") / "bundle").folder / SITE
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Workshop:
    """Makes, signs and serves versions of the agent."""

    def __init__(self, folder, base, server):
        self.folder, self._base, self._server = folder, base, server
        public = [make_key(folder / f"{name}.pem", name=name) for name in ("ours", "stranger")]
        self.trust = first_trust(public[:1], 1)

    def make(self, counter, *, patch="", key="ours", floor=0, platform="any"):
        files = dict(self._base)
        files["device_profiles/version.py"] = b'"""v."""\n\n__version__ = "9.%d"\n' % counter
        files["edge_runtime/agent.py"] = patch.encode() + b"\n" + files["edge_runtime/agent.py"]
        bundle = write_bundle(
            self.folder / f"v{counter}", files, platform=platform, python=None, distributions={"headtail": "9"}
        )
        if key is not None:
            sign_artefact(bundle, [read_key(self.folder / f"{key}.pem")], counter=counter, floor=floor)
        return bundle

    def serve(self, bundle, spoil=None):
        archive = pack_artefact(bundle, self.folder / "packed.zip")
        if spoil is not None:
            data = archive.read_bytes()
            archive.write_bytes(data.replace(*spoil, 1))
            assert archive.read_bytes() != data
        offer = self._server.offer(archive)
        return ArtefactRef(artefact=bundle.id, zip_sha256=offer.zip_sha256, size=offer.size, url=offer.url)


@pytest.fixture
def workshop(tmp_path, base):
    with ArtefactServer(tmp_path / "served") as server:
        yield Workshop(tmp_path, base, server)


class Device:
    """An `edge-agent run` of its own, under a host that retains desired states."""

    def __init__(self, url, name, workshop, *, confirm_s=20):
        self.state = workshop.folder / name
        self.slots = AgentSlots(self.state)
        if not (self.state / "trust.json").exists():
            install_trust(self.state / "trust.json", workshop.trust)
        self.log = workshop.folder / f"{name}.log"
        program = [sys.executable, "-c", "from edge_runtime.cli import main; main()"]
        self._command = [*program, "run", "--broker", url, "--device", name, "--state", str(self.state)]
        self._command += ["--confirm-s", str(confirm_s)]
        self._topics, self.said, self.process = Topics("default", name), SimpleQueue(), None
        kinds = {self._topics.up("reported"): Reported, self._topics.up("birth"): Birth}
        options = LinkOptions(subscriptions=tuple((topic, 1) for topic in kinds))
        self._link = MqttLink(url, options, lambda topic, data, _: self.said.put(decode_control(data, kinds[topic])))

    def __enter__(self):
        self._link.start().wait_connected(PATIENCE_S)
        self.start()
        return self

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=self.log.parent, stdout=log, stderr=log)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()
        self._link.close()

    def want(self, rev, ref, probation_s=0.0):
        desired = Desired(boot="0" * 16, rev=rev, job=f"job{rev}", agent=ref, probation_s=probation_s)
        self._link.publish(Packet(self._topics.desired, encode_control(desired), 1, retain=True))

    def next(self, kind, fits=lambda message: True):
        while True:
            try:
                message = self.said.get(timeout=PATIENCE_S)
            except Empty:
                pytest.fail(f"no {kind.__name__}; {self.log.read_text()[-3000:]}")
            if isinstance(message, kind) and fits(message):
                return message

    def ended(self, rev):
        states = ("active", "failed", "rolled_back")
        return self.next(Reported, lambda one: one.rev == rev and one.state in states)


def test_a_good_version_takes_over_proves_itself_and_stays_over_a_kill(broker, workshop, monkeypatch):
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(workshop.folder / "notify"))
    systemd.settimeout(PATIENCE_S)
    monkeypatch.setenv("NOTIFY_SOCKET", str(workshop.folder / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "3600000000")
    with systemd, Device(broker, "self1", workshop) as device:
        first = device.next(Birth)
        assert [systemd.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
        assert not first.agent_artefact
        bundle = workshop.make(2, floor=2)
        ref = workshop.serve(bundle)
        device.want(1, ref)
        born = device.next(Birth, lambda one: one.boot != first.boot)
        assert (born.agent, born.agent_artefact) == ("9.2", bundle.id)
        assert device.ended(1).state == "active", device.log.read_text()
        assert device.slots.pointer.floors == {LINE: 2}
        said = [systemd.recv(100) for _ in range(3)]
        assert said == [b"STOPPING=1", b"READY=1", b"WATCHDOG=1"], "the one on probation gives the signs of life"
        device.end(signal.SIGKILL)
        device.start()
        again = device.next(Birth, lambda one: one.boot not in (first.boot, born.boot))
        assert again.agent_artefact == bundle.id
        assert device.ended(1).state == "active"
        device.want(2, ArtefactRef(artefact=INSTALLED))
        last = device.ended(2)
        assert last.state == "failed"
        assert last.error.startswith("RollbackError")


@pytest.mark.parametrize(
    ("name", "confirm_s", "patch", "why"),
    [
        ("crashes", 20, WATCHED + "raise RuntimeError('broken')", "started again and again"),
        ("hangs", 2, WATCHED + "__import__('time').sleep(1000)", "confirm within 2 s"),
    ],
    ids=["crashes", "hangs"],
)
def test_a_version_that_does_not_come_up_goes_and_the_one_before_comes_back(
    broker, workshop, name, confirm_s, patch, why
):
    with Device(broker, name, workshop, confirm_s=confirm_s) as device:
        first = device.next(Birth)
        device.want(1, workshop.serve(workshop.make(2, patch=patch)))
        back = device.next(Birth, lambda one: one.boot != first.boot)
        assert not back.agent_artefact
        last = device.ended(1)
        assert last.state == "rolled_back"
        assert why in last.error
        assert device.slots.pointer.floors == {}
        assert device.process.poll() is None
        assert device.end() == 0


def test_what_may_not_run_here_is_refused_by_name_and_the_agent_goes_on(broker, workshop):
    slots = AgentSlots(workshop.folder / "refuses")
    kept = workshop.make(1000)
    shutil.copytree(kept.folder, workshop.folder / "moved")
    slots.adopt(workshop.folder / "moved", kept.id)
    ours = AgentProbation(artefact=kept.id, rev=0, seconds=0, confirm_s=9, floors={LINE: 1000})
    slots.activate(kept.id, ours)
    slots.commit()
    with Device(broker, "refuses", workshop) as device:
        first = device.next(Birth)
        assert first.agent_artefact == kept.id
        edited = workshop.make(2006)
        code = edited.folder / SITE / "edge_runtime" / "cli.py"
        code.write_bytes(code.read_bytes() + b"#")
        refused = {
            "ArtefactError": workshop.serve(workshop.make(2001), (b"edge-agent", b"evil-agent")),
            "IntegrityError": workshop.serve(edited),
            "WrongKeyError": workshop.serve(workshop.make(2002, key="stranger")),
            "UnsignedError": workshop.serve(workshop.make(2003, key=None)),
            "RollbackError": workshop.serve(workshop.make(999)),
            "WrongTargetError": workshop.serve(workshop.make(2004, platform="aarch64")),
            "AgentError": workshop.serve(workshop.make(2005, patch="raise RuntimeError('at import')")),
        }
        for rev, (code, ref) in enumerate(refused.items(), 1):
            device.want(rev, ref)
            last = device.ended(rev)
            assert (last.state, last.error.partition(":")[0]) == ("failed", code), last.error
            assert last.boot == first.boot
        device.want(9, ArtefactRef(artefact=kept.id))
        assert device.ended(9).state == "active"
    assert [path.name for path in (device.state / "agents").iterdir()] == [kept.id]
    assert slots.pointer == AgentPointer(active=kept.id, floors={LINE: 1000})


def test_an_agent_that_no_command_started_does_not_replace_itself(broker, workshop):
    state = workshop.folder / "inside"
    with pytest.raises(NotSupportedError, match="cannot replace itself"):
        SelfUpdate(state, Gatekeeper(state, "this", unsigned=True), None).obtain(
            workshop.serve(workshop.make(2)), lambda *_: pytest.fail("fetched"), lambda _: None
        )


def switch(folder, new, good, kill_at):
    """A switch from start to end, killed before one of the operations that reach the disk; in a process of its own."""
    left = [kill_at]

    def killing(function):
        def call(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    os.fsync, Path.rename, Path.replace = map(killing, (os.fsync, Path.rename, Path.replace))
    slots = AgentSlots(folder)
    slots.adopt(folder / "incoming", new)
    slots.activate(new, AgentProbation(artefact=new, rev=1, seconds=0, confirm_s=9, floors={LINE: 2}))
    for _ in range(2):
        slots.count_start()
    slots.commit() if good else slots.roll_back("bad")


def kill_everywhere(folder, good):
    """Kill one switch before each of its steps, in turn, and look at what comes up; how many steps there were."""

    def small(counter):
        files = {"device_profiles/version.py": b'__version__ = "%d"\n' % counter, "edge_runtime/cli.py": b"pass"}
        return write_bundle(folder / f"small{counter}", files, platform="any", python=None, distributions={})

    old, new = small(1), small(2)
    shutil.copytree(old.folder, folder / "prepared" / "agents" / old.id)
    AgentSlots(folder / "prepared").activate(old.id, None)
    for step in range(100):
        state = folder / f"state{step}"
        shutil.copytree(folder / "prepared", state)
        shutil.copytree(new.folder, state / "incoming")
        child = os.fork()
        if child == 0:
            switch(state, new.id, good, step)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        slots = AgentSlots(state)
        assert slots.pointer.floors in ({}, {LINE: 2})
        chosen = choose(slots)
        assert chosen in (old.id, new.id)
        assert find_damage(slots.folder(chosen), chosen) is None
        if ended == 0:
            assert chosen == (new.id if good else old.id)
            return step
        assert ended == -signal.SIGKILL
        if (state / "incoming").exists():  # begun again with what was fetched
            switch(state, new.id, good, 1000)
            assert choose(slots) == (new.id if good else old.id)
    raise AssertionError("the switch never ended")


@pytest.mark.parametrize("end", ["good", "bad"])
def test_killed_before_any_step_of_a_switch_a_whole_agent_comes_up(end, tmp_path):
    words = [sys.executable, __file__, str(tmp_path), end]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


def test_a_slot_that_was_damaged_is_not_started_and_what_ran_before_is(tmp_path, workshop):
    old, new = workshop.make(1), workshop.make(2)
    slots = AgentSlots(tmp_path / "state")
    for bundle in (old, new):
        shutil.copytree(bundle.folder, tmp_path / "copy")
        slots.adopt(tmp_path / "copy", bundle.id)
        slots.activate(bundle.id, None)
    assert choose(slots) == new.id
    spoiled = slots.folder(new.id) / SITE / "edge_runtime" / "agent.py"
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"#")
    assert choose(slots) == old.id
    assert slots.pointer.active == new.id, "it is sent again"
    shutil.rmtree(slots.folder(old.id))
    assert choose(slots) is None
    (tmp_path / "state" / "agent.json").write_bytes(b"{")
    assert choose(slots) is None


def test_a_damaged_agent_file_opens_no_way_back_to_older_agents(tmp_path, workshop):
    slots, bundle = AgentSlots(tmp_path / "state"), workshop.make(2)
    shutil.copytree(bundle.folder, tmp_path / "copy")
    slots.adopt(tmp_path / "copy", bundle.id)
    slots.activate(bundle.id, AgentProbation(artefact=bundle.id, rev=1, seconds=0, confirm_s=9, floors={"agent": 2}))
    slots.commit()
    (tmp_path / "state" / "agent.json").write_bytes(b"{")
    assert choose(slots) is None, "the installed one comes up"
    assert slots.pointer.floors == {"agent": 2}
    update = SelfUpdate(
        tmp_path / "state", Gatekeeper(tmp_path / "state", "this", unsigned=True), Launched(arguments=())
    )
    with pytest.raises(RollbackError, match="floors"):
        update.obtain(ArtefactRef(artefact=INSTALLED), lambda *_: pytest.fail("fetched"), print)
    slots.activate(bundle.id, None)
    assert AgentSlots(tmp_path / "state").pointer.floors == {"agent": 2}


def test_where_nothing_can_be_noted_nothing_unproven_is_started(tmp_path, workshop, monkeypatch):
    slots, bundle = AgentSlots(tmp_path / "state"), workshop.make(2)
    shutil.copytree(bundle.folder, tmp_path / "copy")
    slots.adopt(tmp_path / "copy", bundle.id)
    slots.activate(bundle.id, AgentProbation(artefact=bundle.id, rev=1, seconds=0, confirm_s=9))

    def full(_path, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_runtime.agent_slots.write_durably", full)
    assert choose(slots) is None
    monkeypatch.undo()
    assert choose(slots) == bundle.id


def test_wheels_make_a_bundle_for_the_machine_and_python_that_they_are_for(tmp_path, base):
    def wheel(name, tag, files):
        made = tmp_path / f"{name}-1.0-{tag}.whl"
        rows = [f"{path},sha256={sha256_text(content)},{len(content)}" for path, content in files.items()]
        with zipfile.ZipFile(made, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "\n".join([*rows, f"{name}-1.0.dist-info/RECORD,,"]))
        return made

    ours = wheel("headtail", "py3-none-any", {**base, "orchestrator/cli.py": b"host alone"})
    native = {"fast/core.so": b"ELF", "fast-1.0.data/purelib/fast/__init__.py": b"", "fast-1.0.data/scripts/x": b""}
    fast = wheel("fast", "cp311-cp311-manylinux_2_28_aarch64", native)
    made = bundle_wheels(tmp_path / "out", [ours, fast])
    said = made.manifest
    assert (said.version, said.platform, said.python) == (__version__, "aarch64", "3.11")
    assert said.distributions == {"headtail": "1.0", "fast": "1.0"}
    assert {"site/fast/core.so", "site/fast/__init__.py"} <= set(said.files_by_path)
    assert not [path for path in said.files_by_path if "orchestrator" in path or "scripts" in path]
    assert bundle_wheels(tmp_path / "out", [ours]).manifest.platform == "any"
    assert open_any(tmp_path / "out").id == open_any(pack_artefact(open_any(tmp_path / "out"), tmp_path / "a.zip")).id
    for wheels, reason in (
        ([fast], "device_profiles/version.py"),
        ([ours, fast, wheel("other", "py3-none-linux_x86_64", {"o.so": b""})], "one kind of machine"),
        ([wheel("mac", "py3-none-macosx_11_0_arm64", {"o.so": b""})], "for Linux"),
        ([tmp_path / "headtail.tar.gz"], "Wanted wheels"),
    ):
        with pytest.raises(BundleError, match=reason):
            bundle_wheels(tmp_path / "out", wheels)
    with pytest.raises(BundleError, match="other files"):
        bundle_installed(tmp_path)


def sha256_text(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


if __name__ == "__main__":  # a process without threads, which may be forked
    print(kill_everywhere(Path(sys.argv[1]), sys.argv[2] == "good"))
