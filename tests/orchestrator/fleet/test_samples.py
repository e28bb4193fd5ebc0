"""The host keeps samples of its own devices, within bounds."""

import io
import threading

import numpy as np
from PIL import Image

from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.sample_message import SampleHead, pack_sample
from orchestrator.fleet.registry import block_device
from orchestrator.fleet.samples import SampleCollector, SampleLimits, SampleStore
from orchestrator.fleet.store import now_ms
from tests.orchestrator.fleet.conftest import bear


def picture(side=8):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def head(seq):
    return SampleHead(boot="0" * 16, seq=seq, frame="f", form="png")


def test_a_device_has_a_day_and_the_folder_an_end(tmp_path):
    data = picture()
    kept = SampleStore(tmp_path, SampleLimits(per_day=3, total_bytes=5 * (len(data) + 200)))
    assert [kept.keep("t/a", head(seq), data, now_s=10.0) for seq in range(5)] == [True, True, True, False, False]
    assert not kept.keep("t/b", head(0), data, now_s=10.0) or kept.keep("t/b", head(1), data, now_s=10.0)
    for day in range(1, 6):
        for seq in range(3):
            kept.keep("t/a", head(100 * day + seq), data, now_s=86_400.0 * day)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk == kept.total_bytes <= 5 * (len(data) + 200)
    assert (tmp_path / "t" / "a" / f"{'0' * 16}-502.png").read_bytes() == data
    again = SampleStore(tmp_path, SampleLimits(total_bytes=5 * (len(data) + 200)))
    assert again.total_bytes == on_disk, "what is there counts after a restart"
    assert not again.keep("t/a", head(502), data, now_s=86_400.0 * 9), "sent before"


def test_samples_of_the_fleets_devices_are_kept_and_no_others(lite, broker, tmp_path):
    bear(lite, "known", "blocked")
    with lite.write() as session:
        block_device(session, "default/blocked", blocked=True, actor="test", now_ms=now_ms())
    collector = SampleCollector(lite, broker, SampleStore(tmp_path))
    thread = threading.Thread(target=collector.run, daemon=True)
    thread.start()
    collector.link.wait_connected(10)
    with MqttLink(broker, LinkOptions(), lambda *_: None) as link:
        link.wait_connected(10)
        for name in ("stranger", "blocked", "known"):
            link.publish(Packet(Topics("default", name).up("sample"), pack_sample(head(1), picture()), 1))
        link.publish(Packet(Topics("default", "known").up("sample"), b"\xff\xff{", 1))
        link.publish(Packet(Topics("default", "known").up("sample"), pack_sample(head(2), picture()), 1))
        wanted = tmp_path / "default" / "known" / f"{'0' * 16}-2.png"
        pause = threading.Event()
        for _ in range(200):
            if wanted.with_suffix(".json").is_file():
                break
            pause.wait(0.05)
    collector.stop()
    thread.join(10)
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"known"}
    assert wanted.read_bytes() == picture()
