"""The dashboard as a process, fed by a real database and a real broker."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.broker_url import is_loopback_host
from edge_runtime.messages import Birth, Heartbeat, Ranked, Result, Slots, Topics, encode_control
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.tail_messages import HOST_TENANT, TAIL_BOUNDS_MS, TailBeat, TailModel
from orchestrator.dashboard.drift import ALERT, BINS, RECENT_COUNT, REFERENCE_COUNT, Confidence, stability_index
from orchestrator.dashboard.live import MAX_DEVICES, MAX_TAILS, WINDOW_S, Live
from orchestrator.fleet.presence import Beat, record_birth, record_heartbeats
from orchestrator.fleet.store import Store, now_ms

BOOT = "0123456789abcdef"
MS = {"preprocess_ms": 1.0, "head_ms": 6.0, "uplink_ms": 3.0, "tail_ms": 4.0, "downlink_ms": 1.5, "total_ms": 15.5}


def birth(**more):
    return Birth(
        boot=BOOT,
        boot_count=1,
        board="rpi-5",
        agent="1",
        engines=("onnxruntime",),
        max_block_bytes=65536,
        slots=Slots(head="a" * 64),
        **more,
    )


def heartbeat():
    counts = {"frames": 10, "dropped": 0, "remote": 9, "local": 1, "failed": 0, "late": 0}
    return Heartbeat(boot=BOOT, seq=1, uptime_s=5.0, rss_bytes=90_000_000, slots=Slots(head="a" * 64), **counts)


def result(seq, **more):
    values = {"source": "remote", "ms": MS, "sent": 15_744, "top": (Ranked(index=1, score=0.8),), **more}
    return Result(boot=BOOT, seq=seq, frame=str(seq), **values)


def beat(seq, answered):
    model = TailModel(
        name="lite0", keys=(BOOT,), answered=answered, batches=answered, bytes_in=0, queue_us=100, decode_us=100,
        tail_us=4000 * answered, counts=(0, 0, 0, answered, *([0] * (len(TAIL_BOUNDS_MS) - 3))),
    )  # fmt: skip
    return TailBeat(
        boot=BOOT, seq=seq, uptime_s=2.0 * seq, workers=1, waiting=0, received=answered, answered=answered, busy=0,
        expired=0, refused=0, rss_bytes=70_000_000, models=(model,),
    )  # fmt: skip


def fill(url, devices=("pi-1", "pi-<2>", "pi-3")):
    store = Store(url)
    with store.write() as session:
        for name in devices:
            if "<" in name:
                continue
            at = now_ms()
            more = {"problem": "no <b>model</b>"} if name == "pi-3" else {}
            record_birth(session, f"default/{name}", birth(**more), now_ms=at)
            text = encode_control(heartbeat()).decode()
            record_heartbeats(session, [Beat(f"default/{name}", heartbeat(), text, at)])
    store.close()


def start(store_url, broker_url, *more, **environment):
    command = [sys.executable, "-m", "orchestrator.dashboard.serve", "--store", store_url, "--broker", broker_url]
    command += ["--port", "0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    line = process.stdout.readline()
    assert "ready" in line, line
    return process, line.split()[-1]


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
        return reply.read().decode(), reply.headers


@pytest.fixture(scope="module")
def site(broker, tmp_path_factory):
    """URL of a dashboard, with three devices and what they say."""
    store_url = f"sqlite:///{tmp_path_factory.mktemp('dashboard') / 'fleet.sqlite'}"
    fill(store_url)
    process, url = start(store_url, broker, "--home-assistant")
    try:
        with MqttLink(broker, LinkOptions(), lambda *_: None) as link:
            link.wait_connected(10)
            end = time.monotonic() + 20
            while get_status(f"{url}/healthz") != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            get(url)  # learns which model the devices run
            for seq in range(60):
                link.publish(
                    Packet(Topics("default", "pi-1").up("result"), encode_control(result(seq, agrees=seq % 10 > 0)))
                )
                time.sleep(0.001)
            for seq in (1, 2):
                topic = Topics(HOST_TENANT, "tail-1-0").up("tail")
                link.publish(Packet(topic, encode_control(beat(seq, 50 * seq))))
            while "tail-1-0" not in get(url)[0]:
                assert time.monotonic() < end
                time.sleep(0.1)
            yield url
    finally:
        process.terminate()
        process.wait(10)


def get_status(url):
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_shows_devices_models_tails_and_alerts(site):
    html, headers = get(site)
    for text in ("pi-1", "rpi-5", "unmanaged (aaaaaaaa)", "tail-1-0", "lite0", "15.4 KiB", "15.5 ms", "90.0 %"):
        assert text in html, text
    assert "no &lt;b&gt;model&lt;/b&gt;" in html, "what devices say is escaped"
    assert "<b>model" not in html
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert not re.search(r"https?://(?!www\.w3\.org)", html), "nothing is loaded from elsewhere"
    assert "pi-1" not in get(f"{site}/?search=pi-3")[0].split("Devices")[-1]


def test_one_device_has_a_page_and_an_unknown_one_does_not(site):
    html, _ = get(f"{site}/devices/default/pi-1")
    assert "Frame to answer" in html
    assert html.count("<circle") == 60
    assert get_status(f"{site}/devices/default/nobody") == 404
    assert get_status(f"{site}/rollouts/none") == 404


def test_the_parts_of_a_page_come_as_events(site):
    with urllib.request.urlopen(f"{site}/events/overview?name=", timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        parts = set()
        while "devices" not in parts:
            line = reply.readline().decode()
            if line.startswith("data: "):
                parts.add(json.loads(line[6:])["part"])
    assert {"tiles", "models", "tails"} <= parts
    assert get_status(f"{site}/events/nothing") == 404


def test_prometheus_reads_the_same_figures(site):
    text, _ = get(f"{site}/metrics")
    for line in (
        'headtail_devices{status="online"} 2.0',
        'headtail_results_total{model="unmanaged (aaaaaaaa)",source="remote"} 60.0',
        'headtail_shadow_total{model="unmanaged (aaaaaaaa)",outcome="differs"} 6.0',
        'headtail_tail_requests_total{outcome="answered",worker="tail-1-0"} 100.0',
        'headtail_tail_seconds_bucket{le="+Inf",model="lite0",worker="tail-1-0"} 100.0',
    ):
        assert line in text, line
    assert json.loads(get(f"{site}/api/overview")[0])["summary"]["devices"] == 2


def test_home_assistant_is_told_where_the_heartbeats_are(site, broker):
    heard = {}
    options = LinkOptions(subscriptions=(("homeassistant/#", 1),))
    with MqttLink(broker, options, lambda topic, payload, _q: payload and heard.update({topic: payload})) as link:
        link.wait_connected(10)
        end = time.monotonic() + 10
        while len(heard) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        for topic in heard:
            link.publish(Packet(topic, b"", 1, retain=True))
    document = json.loads(heard["homeassistant/device/headtail_default_pi-1/config"])
    assert document["state_topic"] == "ht/v1/default/pi-1/up/hb"
    fields = set(Heartbeat.__struct_fields__)
    assert all(part["value_template"].split(".")[1].split()[0] in fields for part in document["cmps"].values())


def test_off_this_machine_a_password_is_wanted(broker, tmp_path):
    store = f"sqlite:///{tmp_path / 'fleet.sqlite'}"
    command = [sys.executable, "-m", "orchestrator.dashboard.serve", "--store", store, "--broker", broker]
    done = subprocess.run([*command, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "HEADTAIL_DASHBOARD_PASSWORD" in done.stderr
    process, url = start(store, broker, HEADTAIL_DASHBOARD_PASSWORD="secret")
    try:
        assert get_status(url) == 401
        assert "Fleet" in get(url, Authorization="Basic dXNlcjpzZWNyZXQ=")[0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(url, Authorization="Basic dXNlcjp3cm9uZw==")
    finally:
        process.terminate()
        process.wait(10)
    assert [is_loopback_host(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "host")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@given(
    st.lists(st.integers(0, 300), min_size=BINS, max_size=BINS),
    st.lists(st.integers(0, 300), min_size=BINS, max_size=BINS),
)
def test_the_stability_index_is_zero_for_equal_histograms_and_positive_otherwise(before, now):
    assert stability_index(before, before) == pytest.approx(0)
    assert stability_index(before, now) >= -1e-12
    assert stability_index(before, now) == pytest.approx(stability_index(now, before))


def test_drift_is_told_only_after_enough_answers_and_only_when_there_is_any():
    steady, drifted = Confidence(), Confidence()
    scores = [0.5 + 0.45 * ((7 * i) % 100) / 100 for i in range(REFERENCE_COUNT)]
    for score in scores:
        steady.add(score)
        drifted.add(score)
    assert steady.index is None
    for score in scores[:RECENT_COUNT]:
        steady.add(score)
        drifted.add(score / 2)
    drifted.add(float("nan"))
    assert steady.index < 0.05
    assert drifted.index > ALERT
    assert sum(drifted.shown) == RECENT_COUNT


def test_what_is_kept_of_devices_and_workers_is_bounded():
    live = Live(lambda _device: "m@1")
    for index in range(MAX_DEVICES + 5):
        live.add_result(f"default/d{index}", result(1), now=0.0)
    live.add_result("default/new", result(1), now=1.0)
    assert live.device("default/new", 1.0).count == 0, "no room while the others are heard"
    live.add_result("default/new", result(2), now=WINDOW_S + 2)
    assert live.device("default/new", WINDOW_S + 2).count == 1, "the silent ones made room"
    for index in range(MAX_TAILS + 5):
        live.add_beat(f"tail-{index}", beat(1, 1), now=0.0)
    assert len(live.tails(0.0)) == MAX_TAILS
