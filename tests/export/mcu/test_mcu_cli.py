"""`headtail export MODEL.tflite --target BOARD` ends in C that the board's compiler, QEMU and TFLM agree on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device_profiles.measurement import parse_profile
from edge_runtime.artefact import open_artefact
from orchestrator.cli import run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The int8 .tflite of the example network, out of its artefact for the board."""
    folder = tmp_path_factory.mktemp("mcu-cli")
    for name in ("own_model.py",):
        shutil.copy(ROOT / "examples" / name, folder)
    subprocess.run([sys.executable, "own_model.py", "calibration.npz"], cwd=folder, check=True)
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "export", "own_model:digits"]
    command += ["--target", "nucleo-h743zi", "--calibration", "calibration.npz", "--out", "digits"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "digits" / "model.tflite"


def test_a_tflite_file_becomes_c_that_runs_with_equal_bytes(model, tmp_path, capsys):
    out = tmp_path / "digits"
    assert run(["export", str(model), "--target", "stm32f746g-disco", "--out", str(out)]) == 0
    assert "make -C" in capsys.readouterr().out
    before = open_artefact(out)
    assert {"Makefile", "report.json", "src/ht_model.h", "CMakeLists.txt"} <= set(before.manifest.files_by_path)
    done = subprocess.run(["make", "-s", "-C", str(out), "qemu"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "differing bytes 0" in done.stdout
    assert open_artefact(out) == before  # building leaves the artefact as it is


def test_a_small_board_says_how_many_bytes_are_missing(model, tmp_path, capsys):
    out = str(tmp_path / "tiny")
    assert run(["export", str(model), "--target", "stm32f746g-disco", "--out", out, "--max-ram", "100"]) == 1
    assert "FitError" in capsys.readouterr().err


@pytest.mark.parametrize("factor", ["nan", "inf"])
def test_a_factor_that_is_no_number_is_one_line(model, tmp_path, capsys, factor):
    arguments = ["--target", "stm32f746g-disco", "--out", str(tmp_path / "out"), "--max-macs-factor", factor]
    assert run(["export", str(model), *arguments]) == 1
    assert f"PatchGraphError: Wanted a finite number for --max-macs-factor, found {factor}" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["layer", "stream", "patch"])
def test_every_schedule_is_offered(model, tmp_path, schedule):
    out = tmp_path / schedule
    arguments = ["--schedule", schedule, "--max-macs-factor", "2"]
    assert run(["export", str(model), "--target", "stm32f746g-disco", "--out", str(out), *arguments]) == 0
    done = subprocess.run(["make", "-s", "-C", str(out), "host"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_place_qemu_compares_with_the_reference_engine(model, tmp_path, capsys):
    out = tmp_path / "digits"
    assert run(["export", str(model), "--target", "nucleo-f446re", "--out", str(out)]) == 0
    assert run(["verify", str(out), "--on", "qemu", "--json"]) == 0
    printed = capsys.readouterr().out
    assert '"place": "mps2-an386 (emulated)"' in printed
    assert '"ms": null' in printed


def test_the_place_qemu_wants_c(model, tmp_path, capsys):
    out = tmp_path / "linux"
    assert (
        run(
            ["export", str(model), "--target", "rpi-4b", "--engine", "litert", "--precision", "int8", "--out", str(out)]
        )
        == 0
    )
    assert run(["verify", str(out), "--on", "qemu"]) == 1
    assert "ProofError" in capsys.readouterr().err


def test_a_profile_on_qemu_counts_instructions_and_no_time(model, tmp_path, capsys):
    out = tmp_path / "digits"
    assert run(["export", str(model), "--target", "nucleo-f446re", "--out", str(out)]) == 0
    capsys.readouterr()
    assert run(["profile", str(out), "--on", "qemu", "--json"]) == 0
    found = parse_profile(capsys.readouterr().out.encode())
    assert found.unit == "instructions"
    assert found.whole.p50 > 1000
    assert abs(found.kernel_sum / found.whole.p50 - 1) < 0.02
    assert run(["profile", str(out), "--on", "qemu", "--minutes", "1"]) == 1
