"""What README and the examples promise is run as a newcomer would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def newcomer(tmp_path):
    """Run a command line in a copy of examples/, with this environment's programs first."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("build", "__pycache__"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HEADTAIL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run(line):
        return subprocess.run(
            line, shell=True, cwd=tmp_path / "examples", env=environment, capture_output=True, text=True, timeout=240
        )

    return run


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
