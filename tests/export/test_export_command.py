import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.artefact import open_artefact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs a command line in a folder that holds the example, as README tells a user to."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_model.py").write_text((ROOT / "examples" / "own_model.py").read_text())
    environment = {**os.environ, "HEADTAIL_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    programs = {
        "headtail": [sys.executable, "-c", "from orchestrator.cli import main; main()"],
        "python": [sys.executable],
    }

    def run(line):
        words = line.split()
        command = [*programs[words[0]], *words[1:]]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    run.folder = folder
    return run


def _commands():
    lines = (ROOT / "examples" / "own_model.py").read_text().split('"""')[1].splitlines()
    return [line.split("   ")[0].strip() for line in lines if line.startswith(("headtail", "python"))]


def test_the_commands_of_the_example_run_as_written(shell):
    commands = _commands()
    assert len(commands) == 5
    for command in commands:
        done = shell(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stderr == ""
    names = {folder.name: open_artefact(folder).manifest for folder in (shell.folder / "build").iterdir()}
    assert set(names) == {"digits-rpi-4b-fp32", "digits-rpi-4b-u8s8", "digits-nucleo-h743zi-int8"}
    assert names["digits-nucleo-h743zi-int8"].engine.name == "tflite-micro"


def test_json_carries_identifiers_findings_and_the_manifest(shell):
    done = shell("headtail export own_model:digits --target this --json")
    document = json.loads(done.stdout)
    artefact = open_artefact(shell.folder / document["folder"])
    assert (document["id"], document["key"]) == (artefact.id, artefact.key)
    assert document["manifest"]["target"].startswith("linux-")
    assert isinstance(document["findings"], list)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("own_model:digits --target rpi-4b --precision int8", "CalibrationError: "),
        ("own_model:nothing --target rpi-4b", "SourceError: Wanted a function 'nothing'"),
        ("no_such:model --target rpi-4b", "SourceError: Wanted the module 'no_such'"),
        ("gone.onnx --target rpi-4b", "SourceError: Wanted a model file"),
        ("own_model:digits --target rpi-9", "BoardError: "),
        ("own_model:digits --target rpi-4b --engine tensorrt", "UnsupportedRouteError: "),
        ("own_model:digits --target rpi-4b --crop 0", "SourceError: Wanted --crop"),
        ("own_model:digits --target rpi-4b --crop 32 --std 0", "SourceError: Wanted one number"),
        ("own_model:digits --target rpi-4b --mean 127 --std 128", "SourceError: Wanted --crop with"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(shell, arguments, said):
    done = shell(f"headtail export {arguments}")
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
