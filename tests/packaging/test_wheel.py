"""The wheel holds every file that the packages need and nothing else, and works where nothing else is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("device_profiles", "edge_runtime", "split", "export", "orchestrator")
# What `pip install headtail[device]` brings; copied from this environment, so that no network is needed.
DEVICE_LIBRARIES = ("numpy", "msgspec", "paho-mqtt")


def run(*command, env=os.environ, **options):
    clean = {name: value for name, value in env.items() if name != "PYTHONPATH"}  # would bring the tree back in
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, env=clean, **options
    )


def build(folder, **environment):
    """Build the wheel of this tree the way `pip install .` does."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder)
    done = run(sys.executable, "-m", "pip", "wheel", ROOT, *options, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("headtail-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree."""
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def device(wheel, tmp_path_factory):
    """A virtual environment with the wheel and what a device installs: no cyclopts, no rich, no engine, no torch."""
    folder = tmp_path_factory.mktemp("device") / "env"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in DEVICE_LIBRARIES:
        files = distribution(name).files
        for top in {Path(file).parts[0] for file in files if Path(file).parts[0] != ".."}:
            (site / top).symlink_to(Path(files[0].locate()).parents[len(files[0].parts) - 1] / top)
    done = run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def names_in(wheel):
    with zipfile.ZipFile(wheel) as content:
        return {name for name in content.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    listed = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, check=True)
    wanted = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    found = {name for name in names_in(wheel) if not name.endswith(".so")}  # compiled while it is built
    assert wanted | {"headtail.py"} == found


def test_the_wheel_holds_boards_types_and_sources_and_no_tests(wheel):
    found = names_in(wheel)
    boards = {f"device_profiles/data/{path.name}" for path in (ROOT / "device_profiles" / "data").glob("*.json")}
    assert len(boards) >= 41
    assert boards <= found
    assert {f"{package}/py.typed" for package in PACKAGES} <= found
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "edge_runtime" / "csrc").glob("*.[ch]")} <= found
    assert not [name for name in found if "test" in Path(name).parts[0] or "/tests/" in name]


def test_without_c_the_wheel_fits_every_machine(tmp_path):
    path = build(tmp_path, HEADTAIL_NO_C="1")
    assert path.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(path) if name.endswith(".so")]


def test_the_wheel_asks_for_numpy_and_msgspec_alone(wheel):
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        lines = content.read(metadata).decode().splitlines()
    plain = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].split(">")[0] for line in plain) == ["msgspec", "numpy"]
    assert not [line for line in plain if "torch" in line]


def test_without_the_cli_extra_headtail_says_so_in_one_line(device):
    done = run(device / "headtail", "--help")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "headtail[cli]" in done.stderr


def test_the_api_imports_and_finds_its_data_files(device, tmp_path):
    code = "import headtail; print(headtail.__version__, len(headtail.list_boards()), headtail.__file__)"
    done = run(device / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, boards, path = done.stdout.split()
    assert version
    assert int(boards) >= 41
    assert Path(path).is_relative_to(device.parent)


def test_the_agent_starts_on_a_device(device, tmp_path):
    done = run(device / "edge-agent", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
