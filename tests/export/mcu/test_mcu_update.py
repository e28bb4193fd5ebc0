"""The update example: whatever flash operation the power goes away in, a verified model boots."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "mcu_update"


@pytest.mark.mcu
def test_a_power_cut_in_any_flash_operation_leaves_a_verified_model(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = re.fullmatch(r"power cuts (\d+), booted the old model after (\d+), wrong 0\n", done.stdout)
    assert found is not None
    assert int(found[1]) > 300


def test_a_counter_is_signed_once(tmp_path):
    (tmp_path / "secret.key").write_bytes(bytes(32))
    (tmp_path / "model.bin").write_bytes(b"model")
    command = [sys.executable, str(EXAMPLE / "sign.py"), "secret.key", "1", "model.bin", "package.bin"]
    subprocess.run(command, cwd=tmp_path, check=True)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "signed already" in again.stderr
