"""examples/mcu_head: a simulated microcontroller asks the host's tail through a real broker."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.artefact import open_artefact
from edge_runtime.session import open_session

EXAMPLE = Path(__file__).parents[3] / "examples" / "mcu_head"
COUNT = 3


@pytest.fixture(scope="module")
def bridge():
    spec = importlib.util.spec_from_file_location("mcu_head_bridge", EXAMPLE / "bridge.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(tflite_builder, tmp_path_factory):
    """(model, pictures): a small classifier whose classes differ from picture to picture."""
    folder = tmp_path_factory.mktemp("node")
    net = tflite_builder(21)
    source = net.activation((1, 12, 12, 3), 0.04, -5)
    tip = net.depthwise(net.conv(source, 8, (3, 3), (2, 2), activation=1))
    (folder / "node.tflite").write_bytes(net.finish([source], [net.dense(tip, 6)]))
    pictures = np.random.default_rng(8).integers(-128, 128, (8, 12, 12, 3)).astype(np.int8)
    np.savez(folder / "pictures.npz", pictures=pictures)
    return folder / "node.tflite", folder / "pictures.npz", pictures


@pytest.mark.mcu
def test_the_class_of_every_picture_comes_back_from_the_hosts_tail(network, broker, tmp_path):
    model, inputs, pictures = network
    arguments = ["--at", "1", "--count", str(COUNT), "--broker", broker, "--out", str(tmp_path / "out")]
    command = [sys.executable, str(EXAMPLE / "run.py"), str(model), str(inputs), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("picture ")]
    head, tail = (open_session(open_artefact(tmp_path / "out" / role)) for role in ("head", "tail"))
    wanted = [int(tail.run(head.run([picture[None]]))[0].argmax()) for picture in pictures[:COUNT]]
    assert [line.split(",")[0] for line in lines] == [f"picture {i}: class {k}" for i, k in enumerate(wanted)]


def test_a_frame_of_an_unknown_cut_is_answered_by_nobody_and_said_so(bridge, broker):
    frame = b"HT\x01\x00" + bytes(range(8)) + bytes(16)
    with (
        bridge.Bridge(broker, "lonely", budget_ms=200) as one,
        pytest.raises(bridge.BridgeError, match="0001020304050607"),
    ):
        one.ask(0, frame)


@given(st.text(alphabet="frame 0123456789abcdefxyz\n", max_size=120))
def test_any_line_is_a_frame_or_talk_or_a_named_error(bridge, line):
    try:
        found = list(bridge.read_frames([line]))
    except bridge.BridgeError:
        assert line.startswith("frame ")
    else:
        assert all(len(frame) >= 28 for _, frame in found)


def test_frames_are_found_between_other_lines(bridge):
    lines = ["booted\n", f"frame 7 {'ab' * 40}\n", "end 1\n"]
    assert list(bridge.read_frames(lines)) == [(7, b"\xab" * 40)]
