"""Each extra brings what the modules of its commands import: they load with every other library hidden."""

import contextlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Loads modules, and packages with all that is in them, while top-level names that are listed cannot be found.
LOAD = """
import importlib, pkgutil, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
for name in NAMES:
    module = importlib.import_module(name)
    for one in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        if not one.name.startswith(SKIPPED):
            importlib.import_module(one.name)
"""


def brought(requirements, extra=""):
    """Names of all distributions that these requirements install, ours resolved from pyproject.toml."""
    found = set()
    waiting = [(Requirement(one), extra) for one in requirements]
    while waiting:
        one, within = waiting.pop()
        name = canonicalize_name(one.name)
        if one.marker is not None and not one.marker.evaluate({"extra": within}):
            continue
        if name == "headtail":
            waiting += [(Requirement(more), "") for key in one.extras for more in PROJECT["optional-dependencies"][key]]
            continue
        fresh = {(name, ""), *((name, key) for key in one.extras)} - found
        found |= fresh
        for _, key in fresh:
            with contextlib.suppress(PackageNotFoundError):  # not for this machine
                waiting += [(Requirement(more), key) for more in requires(name) or ()]
    return {name for name, _ in found}


@pytest.mark.parametrize(
    ("extras", "modules", "skipped"),
    [
        ("export-mcu", ("export.commands.export", "export.commands.fit", "export.commands.split", "export.mcu"), ()),
        (
            "orchestrator,dashboard",
            ("orchestrator.commands", "orchestrator.serving", "orchestrator.fleet", "orchestrator.dashboard"),
            (
                "orchestrator.commands.llm",
                "orchestrator.commands.demo",
                "orchestrator.serving.direct",
                "orchestrator.fleet.migrations",
            ),
        ),
        ("llm", ("orchestrator.commands.llm", "orchestrator.commands.llm_watch", "orchestrator.tensor_parallel"), ()),
    ],
)
def test_modules_load_with_what_their_extra_brings(extras, modules, skipped):
    allowed = brought([*PROJECT["dependencies"], f"headtail[{extras}]"]) | {"headtail"}
    hidden = {
        name
        for name, owners in packages_distributions().items()
        if re.fullmatch(r"\w+", name) and not {canonicalize_name(one) for one in owners} & allowed
    }
    assert "hypothesis" in hidden
    program = f"HIDDEN = {hidden!r}\nNAMES = {modules!r}\nSKIPPED = {skipped!r}\n{LOAD}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
