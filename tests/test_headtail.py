"""The module as a program."""

import subprocess
import sys

import pytest

from device_profiles.version import __version__


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--version"], 0, __version__),
        (["devices"], 0, "rpi-4b"),
        (["nothing-of-this-name"], 2, "nothing-of-this-name"),
    ],
)
def test_the_module_is_the_command(words, status, said):
    done = subprocess.run([sys.executable, "-m", "headtail", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
