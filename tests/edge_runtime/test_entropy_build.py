"""The build hook: a platform wheel with the library where C can be compiled, a pure one of the same code elsewhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge_runtime.entropy.native import NativeCoder

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("device_profiles", "edge_runtime", "split", "export", "orchestrator")
LIBRARY = "edge_runtime/csrc/libht_entropy.so"


@pytest.fixture
def tree(tmp_path):
    """A copy of what a wheel is made of, never built before."""
    folder = tmp_path / "tree"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "headtail.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(tree, function="build_wheel", **environment):
    """The path of the wheel that an installer would get."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "HEADTAIL_NO_C")}
    code = f"from hatchling.build import {function}; print({function}('out'))"
    command = [sys.executable, "-c", code]
    (tree / "out").mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=tree, env={**kept, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tree / "out" / done.stdout.split()[-1]


def test_a_wheel_with_c_is_for_this_platform_and_its_library_loads(tree, tmp_path):
    wheel = build(tree)
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        NativeCoder(Path(archive.extract(LIBRARY, tmp_path / "unpacked")))
        assert "edge_runtime/csrc/ht_entropy.c" in archive.namelist()


@pytest.mark.parametrize("environment", [{"HEADTAIL_NO_C": "1"}, {"CC": "false"}, {"CC": "no-such-compiler"}], ids=str)
def test_without_a_compiler_the_wheel_is_pure(tree, environment):
    wheel = build(tree, **environment)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()


def test_an_editable_install_builds_the_library_in_the_tree(tree):
    build(tree, "build_editable")
    NativeCoder(tree / LIBRARY)
    assert not list((tree / LIBRARY).parent.glob("*.tmp"))
