"""A fleet with certificates on a real broker: who may enrol, and who may say what where."""

import contextlib
import ssl
import threading

import numpy as np
import pytest

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.broker_url import TlsFiles, tls_url
from edge_runtime.cli import main
from edge_runtime.enrol import EnrolError, enrol
from edge_runtime.identity import Place, broker_urls, identity_files, identity_folder, read_identity
from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink, NotConnectedError, Packet
from edge_runtime.offloader import Offloader, OffloadOptions
from orchestrator.broker import BrokerOptions, InsecureError, MosquittoBroker, free_port
from orchestrator.broker_access import AccessOptions
from orchestrator.cli import run
from orchestrator.deploy import deploy
from orchestrator.enrolment import EnrolmentOptions, EnrolmentServer, make_token, revoke_device
from orchestrator.fleet.store import Store, default_url
from orchestrator.pki import Authority, readable_by_broker
from orchestrator.tail_server import TailServer, serve_artefact

PATIENCE_S = 10


class Fleet:
    """Authority, broker with certificates, enrolment server."""

    def __init__(self, folder, stack):
        folder.chmod(0o755)
        self.authority = Authority.make(folder / "pki", ["127.0.0.1"])
        readable_by_broker(self.authority)
        self.access = AccessOptions(folder / "pki", "127.0.0.1", free_port(), free_port())
        self.broker = stack.enter_context(
            MosquittoBroker(BrokerOptions(port=0, access=self.access, max_packet_bytes=300_000))
        )
        self.store = Store(default_url(folder))
        stack.callback(self.store.close)
        place = Place(host="127.0.0.1", device_port=self.access.device_port, service_port=self.access.service_port)
        self.server = stack.enter_context(EnrolmentServer(self.store, self.authority, EnrolmentOptions(place=place)))
        self.url = f"https://127.0.0.1:{self.server.port}"
        self.folder = folder

    def token(self, device, valid_s=60):
        return make_token(self.store, self.authority, tenant="default", device=device, valid_s=valid_s)

    def join(self, device):
        state = self.folder / device
        return broker_urls(enrol(self.url, self.token(device), device=device, tenant="default", state=state), state)

    def service(self, name):
        return tls_url("127.0.0.1", self.access.service_port, self.authority.files(name))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """One fleet for the tests of this module; mosquitto must be able to read its folder."""
    folder = tmp_path_factory.mktemp("fleet")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    with contextlib.ExitStack() as stack:
        yield Fleet(folder, stack)


class Listener:
    """A link with what it received."""

    def __init__(self, url, *topics):
        self.got, self.any = [], threading.Event()
        self.link = MqttLink(url, LinkOptions(subscriptions=tuple((topic, 1) for topic in topics)), self._take)

    def _take(self, topic, payload, _qos):
        self.got.append((topic, bytes(payload)))
        self.any.set()

    def __enter__(self):
        self.link.start().wait_connected(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self.link.close()


def test_a_token_is_good_once_for_its_name_and_its_authority(fleet, tmp_path):
    token = fleet.token("once")
    assert len(bytes.fromhex(token.split(".")[0])) >= 16  # hexadecimal: a command line never takes it for an option
    with pytest.raises(EnrolError, match="403"):
        enrol(fleet.url, token, device="other", tenant="default", state=tmp_path)
    identity = enrol(fleet.url, token, device="once", tenant="default", state=tmp_path)
    assert read_identity(tmp_path) == identity
    assert identity_files(tmp_path).key.stat().st_mode & 0o777 == 0o600
    assert identity_folder(tmp_path).stat().st_mode & 0o777 == 0o700
    with pytest.raises(EnrolError, match="403"):
        enrol(fleet.url, token, device="once", tenant="default", state=tmp_path)
    with pytest.raises(EnrolError, match="403"):
        enrol(fleet.url, fleet.token("late", valid_s=-1), device="late", tenant="default", state=tmp_path)
    secret, _ = fleet.token("lured").split(".")
    with pytest.raises(EnrolError, match="Somebody else"):
        enrol(fleet.url, f"{secret}.{'0' * 64}", device="lured", tenant="default", state=tmp_path)


@pytest.mark.parametrize("hours", ["nan", "inf", "-1", "0", "1e300"])
def test_a_token_that_is_good_for_no_time_or_for_ever_is_refused(fleet, hours, capsys):
    folder = str(fleet.authority.folder)
    assert run(["pki", "token", folder, "--device", "d", f"--hours={hours}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("PkiError: Wanted --hours")
    assert f"found {float(hours):g}" in said.err


@pytest.mark.parametrize("host", ["bücher.example", "", "a b", "h:8883", ".x", "-x", "a" * 64, "a." * 127 + "aa"])
def test_a_host_name_that_no_certificate_can_hold_leaves_no_half_authority(host, tmp_path, capsys):
    folder = tmp_path / "pki"
    assert run(["pki", "init", str(folder), "--host", "127.0.0.1", f"--host={host}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("PkiError: Wanted host names")
    assert repr(host[:80]) in said
    assert not folder.exists()
    assert run(["pki", "init", str(folder), "--host", "xn--bcher-kva.example", "--host", "::1"]) == 0


@pytest.mark.parametrize(
    "url",
    [
        "https://[::1",
        "https://h:x",
        "https://h:99999",
        "http://h:1",
        "h:1",
        "https://:1",
        "https://h:0",
        "https://ho st:1",
    ],
)
def test_urls_where_nobody_can_enrol_are_named(url, tmp_path):
    token = f"{'a' * 48}.{'0' * 64}"
    with pytest.raises(EnrolError, match="Wanted https://host:port of `headtail pki serve`") as raised:
        enrol(url, token, device="d", tenant="default", state=tmp_path)
    assert repr(url) in str(raised.value)
    with pytest.raises(EnrolError, match="Wanted a token of `headtail pki token`") as raised:
        enrol("https://h:1", "secret-and-wrong", device="d", tenant="default", state=tmp_path)
    assert "secret" not in str(raised.value)


def test_a_second_certificate_behind_the_right_ca_is_not_trusted(fleet, tmp_path):
    served = fleet.authority.folder / "ca.pem"
    right = served.read_text()
    stranger = Authority.make(tmp_path / "stranger", ["127.0.0.1"]).folder / "ca.pem"
    token = fleet.token("two")
    try:
        served.write_text(right + stranger.read_text())
        with pytest.raises(EnrolError, match="more than one certificate"):
            enrol(fleet.url, token, device="two", tenant="default", state=tmp_path)
    finally:
        served.write_text(right)
    enrol(fleet.url, token, device="two", tenant="default", state=tmp_path)
    kept = identity_files(tmp_path).ca.read_text()
    assert ssl.PEM_cert_to_DER_cert(kept) == ssl.PEM_cert_to_DER_cert(right)


def test_a_device_cannot_take_a_services_name(fleet, tmp_path):
    with pytest.raises(Exception, match="device"):
        fleet.token("@orchestrator")
    with pytest.raises(Exception, match="device"):
        enrol(fleet.url, fleet.token("x"), device="@tails", tenant="default", state=tmp_path)


def test_deploy_and_offload_work_with_certificates(fleet, network, tmp_path):
    control, offload = fleet.join("tls1")
    options = AgentOptions(broker=control, offload_broker=offload, device="tls1", state=tmp_path / "state")
    agent = Agent(options)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    try:
        assert deploy(fleet.service("orchestrator"), "tls1", network.whole).state == "active"
    finally:
        agent.stop()
        thread.join(10)
    for qos in (0, 1):
        with TailServer(fleet.service("tails"), [serve_artefact(network.tail)]):
            limits = OffloadOptions(deadline_ms=5000, qos=qos)
            with Offloader(offload, "tls1", head=network.head, options=limits) as offloader:
                offloader.wait_connected()
                for _ in range(20):
                    answer = offloader.infer(network.x)
                    assert answer.source == "remote"
                    assert np.array_equal(answer.outputs[0], network.y)


@pytest.mark.parametrize("qos", [0, 1])
def test_packets_of_many_tls_records_arrive_whole_and_in_order(fleet, qos):
    control, _ = fleet.join(f"big{qos}")
    topic = Topics("default", f"big{qos}").up("result")
    payloads = [bytes([n]) * (250_000 - n) for n in range(30)]
    with Listener(fleet.service("orchestrator"), topic) as host, Listener(control) as device:
        for payload in payloads:
            device.link.publish_pieces(topic, (payload[:7], memoryview(payload)[7:]), qos)
        while len(host.got) < len(payloads) and host.any.wait(PATIENCE_S):
            host.any.clear()
        assert [payload for _, payload in host.got] == payloads


def test_a_device_reads_and_writes_its_own_topics_alone(fleet):
    first, _ = fleet.join("acl1")
    second, offload = fleet.join("acl2")
    mine, theirs = Topics("default", "acl2"), Topics("default", "acl1")
    everything = ("#", "ht/v1/default/acl1/#", "ht/v1/+/+/down/#")
    with (
        Listener(fleet.service("orchestrator"), "ht/v1/default/+/up/#") as host,
        Listener(first, theirs.deploy),
        Listener(second, *everything) as spy,
        Listener(offload, *everything) as other_spy,
    ):
        for link, topic in (
            (spy.link, theirs.up("birth")),
            (spy.link, theirs.deploy),
            (spy.link, mine.deploy),
            (other_spy.link, mine.up("birth")),
            (other_spy.link, theirs.request("0" * 16, "0" * 16)),
        ):
            link.publish(Packet(topic, b"forged", 1))
        host.link.publish(Packet(theirs.deploy, b"for acl1", 1))
        host.link.publish(Packet(mine.deploy, b"for acl2", 1))
        spy.link.publish(Packet(mine.up("hb"), b"true", 1))
        while not any(payload == b"true" for _, payload in host.got) or not spy.got:
            assert host.any.wait(PATIENCE_S)
        assert (mine.deploy, b"for acl2") in spy.got
        assert {payload for _, payload in spy.got} == {b"for acl2"}
        assert not other_spy.got
        assert all(payload != b"forged" for _, payload in host.got)


def test_nobody_takes_another_devices_session(fleet):
    first, _ = fleet.join("ses1")
    second, _ = fleet.join("ses2")
    with Listener(first) as victim:
        options = LinkOptions(client_id="ses1")
        with MqttLink(second, options, lambda *_: None) as thief:
            thief.wait_connected(PATIENCE_S)
            victim.link.publish(Packet(Topics("default", "ses1").up("hb"), b"still here", 1))
            assert victim.link.connects == 1
            assert victim.link.connected


def test_without_a_certificate_or_with_a_revoked_one_nobody_connects(fleet, tmp_path):
    ca_only = TlsFiles(fleet.authority.folder / "ca.pem")
    control, _ = fleet.join("gone")
    for url in (tls_url("127.0.0.1", fleet.access.device_port, ca_only),):
        with pytest.raises(NotConnectedError), MqttLink(url, LinkOptions(), lambda *_: None) as link:
            link.wait_connected(1.0)
    with Listener(control):
        pass
    assert revoke_device(fleet.store, fleet.authority, "default/gone") == 1
    fleet.broker.stop()
    fleet.broker.start()
    with pytest.raises(NotConnectedError), MqttLink(control, LinkOptions(), lambda *_: None) as link:
        link.wait_connected(1.0)
    stranger = Authority.make(tmp_path / "strangers", ["127.0.0.1"])
    url = tls_url("127.0.0.1", fleet.access.service_port, stranger.files("orchestrator"))
    with pytest.raises(NotConnectedError), MqttLink(url, LinkOptions(), lambda *_: None) as link:
        link.wait_connected(1.0)


def test_the_agent_command_enrols_and_secrets_stay_out_of_what_it_says(fleet, tmp_path, capsys):
    token = fleet.token("cli1")
    command = ["enroll", "--url", fleet.url, "--device", "cli1", "--state", str(tmp_path)]
    for given, status in ((token, 0), (token, 1)):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--token", given])
        assert ended.value.code == status
    said = capsys.readouterr()
    assert token.split(".")[0] not in said.out + said.err
    with pytest.raises(SystemExit) as ended:
        main(["run", "--state", str(tmp_path), "--frames", "0"])
    assert ended.value.code == 0
    assert "cli1" in capsys.readouterr().err


def test_a_broker_without_certificates_listens_on_loopback_alone(tmp_path, capsys):
    with pytest.raises(InsecureError, match="headtail pki"):
        MosquittoBroker(BrokerOptions(host="0.0.0.0", port=0))
    assert run(["broker", "--host", "0.0.0.0", "--port", "0", "--embedded"]) == 1
    assert "InsecureError" in capsys.readouterr().err
