"""The demo: its arithmetic, its child processes, its photographs, and once the whole story."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from orchestrator.demo.build import CutChoiceError, ListedCut, ListedTensor, choose_cuts
from orchestrator.demo.photos import PHOTOS, copy_photos, locate, write_calibration
from orchestrator.demo.processes import ChildError, Children
from orchestrator.demo.strategies import (
    Row,
    Sample,
    Strategy,
    break_even_bits_per_s,
    summarise,
    total_at_rate_ms,
    verdict,
)

LOCAL = Row(
    name="local", payload_bytes=0, device_ms=50, host_ms=0, broker_ms=0, link_ms=0, total_ms=50, agreement=1, count=1
)
REMOTE = Row(
    name="cut", payload_bytes=1000, device_ms=5, host_ms=4, broker_ms=1, link_ms=8, total_ms=18, agreement=1, count=1
)


def sample(strategy, picture, *, rest_ms=1.0, top1=3, total_ms=10.0):
    return Sample(
        strategy=strategy, picture=picture, top1=top1, probability=0.5, payload_bytes=7,
        device_ms=2.0, host_ms=3.0, rest_ms=rest_ms, total_ms=total_ms,
    )  # fmt: skip


def test_the_break_even_rate_makes_both_ways_equally_long():
    rate = break_even_bits_per_s(LOCAL, REMOTE, delay_ms=2)
    assert total_at_rate_ms(REMOTE, rate, delay_ms=2) == pytest.approx(LOCAL.total_ms)


def test_no_rate_is_enough_when_the_delay_alone_is_longer():
    assert break_even_bits_per_s(LOCAL, REMOTE, delay_ms=30) is None
    slow = msgspec.structs.replace(REMOTE, total_ms=90.0)
    assert "no rate is enough for 'cut'" in verdict([LOCAL, slow], 30, "a link")


def test_the_verdict_names_the_winner_and_its_margin():
    assert "'cut' wins with 18.0 ms, 32.0 ms ahead of 'local'" in verdict([LOCAL, REMOTE], 2, "a link")


def test_broker_and_link_are_told_apart_by_the_run_without_the_link():
    ways = [Strategy(name="a", kind="local", artefact="x"), Strategy(name="b", kind="cut", artefact="y")]
    direct = [sample("a", 0, rest_ms=0), sample("b", 0, rest_ms=1.5)]
    linked = [sample("a", 0, rest_ms=0), sample("b", 0, rest_ms=41.5, top1=4)]
    rows = summarise(ways, direct, linked, reference="a")
    assert (rows[1].broker_ms, rows[1].link_ms) == (1.5, 40.0)
    assert [row.agreement for row in rows] == [1.0, 0.0]


def cut(share, payload_bytes):
    macs = round(1000 * share)
    return ListedCut(
        tensors=(ListedTensor(name=f"t{share}"),), head_macs=macs, tail_macs=1000 - macs, payload_bytes=payload_bytes
    )


def test_the_cheapest_cut_of_each_share_is_chosen():
    chosen = choose_cuts((cut(0, 150), cut(0.1, 90), cut(0.12, 80), cut(0.3, 20), cut(0.6, 9), cut(0.7, 8)))
    assert [one.payload_bytes for _, one in chosen] == [150, 80, 20, 8]
    with pytest.raises(CutChoiceError, match="50%"):
        choose_cuts((cut(0.1, 90), cut(0.3, 20)))


def test_every_photograph_is_there_with_author_licence_and_link(tmp_path):
    for photo in PHOTOS:
        assert locate(photo).is_file()
        assert photo.author
        assert photo.licence
        assert photo.link.startswith("https://")
    assert len(copy_photos(tmp_path / "pictures")) == len(PHOTOS)


def test_calibration_crops_are_the_same_every_time(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert write_calibration(one, PHOTOS[:1]) == write_calibration(two, PHOTOS[:1]) == 12
    for path in one.iterdir():
        with Image.open(path) as image:
            assert image.size == (256, 256)
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_a_child_that_fails_is_named_with_its_last_words(tmp_path):
    with Children(tmp_path) as children, pytest.raises(ChildError, match="exit status 3: last words"):
        children.run("broken", [sys.executable, "-c", "import sys; sys.stderr.write('last words'); sys.exit(3)"])


def test_no_child_is_left_behind(tmp_path):
    code = "import time; print('here', flush=True); time.sleep(600)"
    with Children(tmp_path) as children:
        children.start("sleeper", [sys.executable, "-c", code], ready="here")
        child = children._running[0][1]
        assert child.poll() is None
    assert child.poll() is not None


def test_a_child_that_never_is_ready_is_named(tmp_path):
    with Children(tmp_path) as children, pytest.raises(ChildError, match="to say 'ready'"):
        children.start("mute", [sys.executable, "-c", "print('bye')"], ready="ready", timeout_s=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_no_process(tmp_path, number):
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "demo", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "logs" / "export-fp32.log").is_file() and time.monotonic() < end:
            threading.Event().wait(0.02)
        process.send_signal(number)
        assert process.wait(20) == 130
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(tmp_path) in _read(path)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


@pytest.mark.timeout(600)
def test_the_whole_story(tmp_path):
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "demo"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "demo"), "--rounds", "1", "--link", "none"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missed the deadline" in done.stdout
    rows = msgspec.json.decode((tmp_path / "demo" / "rows.json").read_bytes())["rows"]
    assert len(rows) == 8
    assert rows[1]["agreement"] >= 0.75
    assert "espresso" in (tmp_path / "demo" / "report.html").read_text()
