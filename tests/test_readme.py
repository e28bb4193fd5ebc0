"""What README and the examples promise is run as a newcomer would."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.broker import free_port

ROOT = Path(__file__).parent.parent


class Newcomer:
    """Runs command lines in a copy of examples/, with this environment's programs first."""

    def __init__(self, folder):
        self._folder = folder / "examples"
        shutil.copytree(ROOT / "examples", self._folder, ignore=shutil.ignore_patterns("build", "__pycache__"))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {
            **os.environ,
            "PATH": path,
            "HEADTAIL_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
        }

    def __call__(self, line):
        where = {"cwd": self._folder, "env": self._environment}
        return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=240, **where)

    def start(self, line):
        """One that runs until it is ended."""
        return subprocess.Popen(f"exec {line}", shell=True, cwd=self._folder, env=self._environment)


@pytest.fixture
def newcomer(tmp_path):
    return Newcomer(tmp_path)


def readme_block(heading, index=0):
    """The lines of a code block below a heading."""
    text = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1]
    return re.findall(r"```\n(.*?)```", text, re.DOTALL)[index].strip().splitlines()


def test_the_commands_for_a_model_of_ones_own_work(newcomer):
    lines = readme_block("A model of your own")
    assert len(lines) == 7
    fit = readme_block("Where to cut, and what it costs")[0]
    assert fit.startswith("headtail fit build/whole ")
    for line in [*lines, fit]:
        done = newcomer(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_a_deployed_model_of_ones_own_answers_about_pictures_of_a_folder(newcomer, tmp_path):
    """The second block as it is written, but for host and port; and an end of the pictures."""
    for line in readme_block("A model of your own")[1:5]:
        done = newcomer(line.replace("--target rpi-4b", "--target this"))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    (tmp_path / "examples" / "photos").mkdir()
    for index, size in enumerate(((64, 48), (40, 90))):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "examples" / "photos" / f"{index}.png")
    port = free_port()
    broker, tail, agent, deploy = (
        line.split("#")[0].replace("mqtt://host", f"mqtt://127.0.0.1:{port}")
        for line in readme_block("A model of your own", 1)
    )
    with contextlib.ExitStack() as stack:
        for line in (
            broker.replace("0.0.0.0", f"127.0.0.1 --port {port}"),
            tail,
            f"{agent} --frames 8 --results results.jsonl",
        ):
            stack.callback(end, newcomer.start(line))
        done = newcomer(deploy)
        assert done.returncode == 0, done.stderr
        results = tmp_path / "examples" / "results.jsonl"
        pause = threading.Event()
        for _ in range(300):
            answers = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
            if len(answers) >= 8:
                break
            pause.wait(0.1)
    assert len(answers) == 8
    assert [one["source"] for one in answers].count("remote") >= 5, answers  # a slow machine misses a deadline


def end(process):
    """End a process that was started here."""
    process.terminate()
    process.wait(20)


def test_the_python_api_answers_through_a_broker(newcomer):
    done = newcomer("python python_api.py .")
    assert done.returncode == 0, done.stderr
    measured, planned, *answers = done.stdout.strip().splitlines()
    assert " ms here, " in measured
    assert planned.startswith(("Split: ", "Do not split: "))
    assert len(answers) == 5
    assert all(line.startswith("remote") and line.endswith("equal to unsplit: True") for line in answers)


def test_the_devices_block_names_commands_and_options_that_exist(newcomer):
    lines = readme_block("A model of your own", 1)
    assert len(lines) == 4
    for line in lines:
        command = re.match(r"[a-z-]+( [a-z]+)*", line.split("#")[0]).group()
        done = newcomer(f"{command} --help")
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert not [option for option in re.findall(r"--[a-z-]+", line) if option not in done.stdout], line
