"""The commands of docs/raspberry-pi.md, as they stand there, in an emulated Raspberry Pi's user space."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.emulated import emulated_environment, emulated_python
from edge_runtime.artefact import open_artefact, write_artefact
from edge_runtime.manifest import (
    Engine,
    Golden,
    Manifest,
    ModelInfo,
    Postprocessing,
    Preprocessing,
    TensorSpec,
    Tool,
)
from edge_runtime.messages import Result
from edge_runtime.preprocess import decode_image, prepare
from edge_runtime.session import open_session

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "raspberry-pi.md"
PHOTOGRAPHS = 3


def commands():
    """What the page asks to type on the device, one command a line."""
    found = re.search(r"<!-- tested: first-answer -->\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return found[1].strip().splitlines()


def classifier():
    """Mean colour -> 4 classes, with weights that tell the photographs apart."""
    weights = np.array([[1, -1, 0, 0.3], [0, 1, -1, 0.3], [-1, 0, 1, 0.3]], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 32, 32))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 4))],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def write_model(folder):
    """A whole model with labels and a golden vector."""
    content = classifier()
    image = TensorSpec(
        name="image", engine_name="image", dtype="float32", shape=(1, 3, 32, 32), layout="nchw", semantic="image"
    )
    logits = TensorSpec(name="logits", engine_name="logits", dtype="float32", shape=(1, 4), semantic="logits")
    sample = np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    expected = ort.InferenceSession(content).run(None, {"image": sample})[0]
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="colours", source_sha256="0" * 64),
        role="whole",
        target="rpi-4b-4gb",
        precision="fp32",
        engine=Engine(name="onnxruntime", built=ort.__version__),
        entry="model.onnx",
        inputs=(image,),
        outputs=(logits,),
        files=(),
        preprocessing=Preprocessing(resize_short=32, crop=(32, 32), mean=(127.0,) * 3, std=(128.0,) * 3),
        postprocessing=Postprocessing(kind="softmax-top-k", labels="labels.txt"),
        golden=(
            Golden(
                inputs=("golden/x",), expected=("golden/y",), compare="absolute", tolerance=1e-5, produced_on="here"
            ),
        ),
    )
    files = {
        "model.onnx": content,
        "labels.txt": b"red\ngreen\nblue\ngrey\n",
        "golden/x": sample.tobytes(),
        "golden/y": expected.tobytes(),
    }
    return write_artefact(folder, manifest, files)


def write_photographs(folder):
    """Noise around one colour each, as JPEG files."""
    folder.mkdir()
    for index in range(PHOTOGRAPHS):
        pixels = np.random.default_rng(index).integers(0, 90, size=(48, 64, 3), dtype=np.uint8)
        pixels[..., index] += 150
        Image.fromarray(pixels).save(folder / f"{index}.jpg")


@pytest.fixture
def device(tmp_path):
    """The device's home folder with what `scp` would have left there."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ROOT,
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-q",
            "-w",
            tmp_path,
        ],
        env=emulated_environment(HEADTAIL_NO_C="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "constraints" / "device-py311.txt", tmp_path)
    write_model(tmp_path / "model")
    write_photographs(tmp_path / "photos")
    return tmp_path


def answers_here(device):
    """What this machine answers to the same photographs: name -> class."""
    artefact = open_artefact(device / "model")
    session = open_session(artefact)
    manifest = artefact.manifest
    found = {}
    for path in sorted((device / "photos").iterdir()):
        tensor = prepare(decode_image(path.read_bytes()), manifest.inputs[0], manifest.preprocessing)
        found[path.name] = int(session.run([tensor])[0].argmax())
    return found


def test_the_page_asks_for_at_most_five_commands_and_names_this_version():
    assert 1 <= len(commands()) <= 5
    assert f"headtail-{version('headtail')}-py3-none-any.whl" in PAGE.read_text()


def test_the_commands_of_the_page_end_in_answers(device, broker):
    path = f"{emulated_python().parent}:{emulated_environment()['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "\n".join(commands())],
        cwd=device,
        env=emulated_environment(PATH=path, HOST=broker.removeprefix("mqtt://"), HOME=str(device)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    results = [msgspec.json.decode(line, type=Result) for line in lines]
    assert [result.source for result in results] == ["local"] * PHOTOGRAPHS, done.stdout[-3000:]
    assert {result.frame: result.top[0].index for result in results} == answers_here(device)
    machine = subprocess.run(
        [device / "headtail" / "bin" / "python", "-c", "import platform; print(platform.machine())"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert machine.stdout.strip() == "aarch64"
