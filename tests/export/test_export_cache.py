import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from export.cache import Cache, cache_key, open_cache
from export.modules import from_model
from export.pipeline import export_model
from export.recall import load_source
from export.source import ModelSource

ROOT = Path(__file__).parents[2]
NETWORK = """
import torch
from torch import nn
from helper import scale

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x):
        return self.layer(x) * scale()

def fixed():
    module = Net()
    module.load_state_dict(torch.load("weights.pt", weights_only=True))
    return module, torch.zeros(1, 4)

def unseeded():
    return Net(), torch.zeros(1, 4)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "helper.py").write_text("def scale():\n    return 2.0\n")
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(4, 3).state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.save({f"layer.{name}": value for name, value in state.items()}, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPORT = """
import pathlib, sys
from export.pipeline import export_model
artefact = export_model(sys.argv[1], "rpi-4b", out=pathlib.Path("out"))
print(artefact.id, artefact.manifest.model.source_sha256, "torch" in sys.modules, "onnx" in sys.modules)
"""
IDENTIFY = """
import sys
from export.cache import open_cache
from export.recall import load_source
print(load_source(sys.argv[1], open_cache()).sha256, "torch" in sys.modules)
"""


def _run(project, code, model):
    """A process of its own; returns the words it prints and the seconds it takes."""
    environment = {**os.environ, "HEADTAIL_CACHE": str(project / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, model]
    start = time.monotonic()
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split(), time.monotonic() - start


def test_a_second_export_imports_no_torch(project):
    first, _ = _run(project, EXPORT, "net:fixed")
    second, _ = _run(project, EXPORT, "net:fixed")
    assert first[:3] == [*second[:2], "True"]
    assert second[2:] == ["False", "False"]


@pytest.mark.parametrize("change", ["code", "helper", "weights"])
def test_a_change_of_code_or_weights_is_seen(project, change):
    first, _ = _run(project, IDENTIFY, "net:fixed")
    if change == "code":
        (project / "net.py").write_text(NETWORK.replace("* scale()", "+ scale()"))
    elif change == "helper":
        (project / "helper.py").write_text("def scale():\n    return 3.0\n")
    else:
        state = torch.load(project / "weights.pt", weights_only=True)
        torch.save({name: value + 1.0 for name, value in state.items()}, project / "weights.pt")
    second, _ = _run(project, IDENTIFY, "net:fixed")
    assert first[0] != second[0]


def test_a_function_that_gives_other_weights_each_time_is_never_recalled(project):
    first, _ = _run(project, IDENTIFY, "net:unseeded")
    second, _ = _run(project, IDENTIFY, "net:unseeded")
    assert first[0] != second[0]
    assert second[1] == "True"


def test_a_module_is_known_by_weights_code_attributes_and_example():
    def digest(module, *, size=4):
        return from_model(ModelSource(module=module, example=(torch.zeros(1, size),))).sha256

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    base = digest(torch.nn.Sequential(layer, torch.nn.LeakyReLU(0.1)))
    assert base == digest(torch.nn.Sequential(layer, torch.nn.LeakyReLU(0.1)))
    others = {
        digest(torch.nn.Sequential(layer, torch.nn.LeakyReLU(0.2))),
        digest(torch.nn.Sequential(layer, torch.nn.ReLU())),
        digest(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LeakyReLU(0.1))),
    }
    assert len(others | {base}) == 4


def test_damaged_entries_are_made_again(tmp_path, tiny_model):
    cache = Cache(tmp_path / "cache")
    assert cache.blob("k" * 64, lambda: b"one") == b"one"
    assert cache.blob("k" * 64, lambda: b"two") == b"one"
    (tmp_path / "cache" / "blob" / ("k" * 64)).write_bytes(b"x" * 40)
    assert cache.blob("k" * 64, lambda: b"two") == b"two"

    first = export_model(tiny_model(), "rpi-4b", out=tmp_path / "a", cache=cache)
    (kept,) = (tmp_path / "cache" / "artefact").iterdir()
    (kept / "model.onnx").write_bytes(b"damaged")
    second = export_model(tiny_model(), "rpi-4b", out=tmp_path / "b", cache=cache)
    assert first.id == second.id


def test_an_error_keeps_nothing(tmp_path):
    cache = Cache(tmp_path)

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.blob("k" * 64, fail)
    assert cache.blob("k" * 64, lambda: b"made") == b"made"


def test_the_environment_chooses_the_folder_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADTAIL_CACHE", str(tmp_path))
    assert open_cache().folder == tmp_path
    monkeypatch.setenv("HEADTAIL_CACHE", "off")
    assert open_cache().folder is None
    monkeypatch.delenv("HEADTAIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache().folder == tmp_path / "headtail"


def test_without_a_cache_the_artefact_is_the_same(tmp_path, tiny_model, export_cache):
    kept = export_model(tiny_model(), "rpi-4b", out=tmp_path / "a", cache=export_cache)
    plain = export_model(tiny_model(), "rpi-4b", out=tmp_path / "b", cache=Cache(None))
    assert kept.id == plain.id


def test_a_key_depends_on_every_part():
    assert len({cache_key("a", "b"), cache_key("ab"), cache_key("a", "b", None), cache_key("b", "a")}) == 4


def test_a_source_that_was_found_is_taken_as_it_is(tiny_model, export_cache):
    source = from_model(tiny_model(), name="mine")
    assert load_source(source, export_cache) is source


@pytest.fixture
def no_room(tmp_path):
    """A cache whose folder cannot be made; root may write everywhere, so a file stands in the way."""
    (tmp_path / "file").write_text("in the way")
    return Cache(tmp_path / "file" / "cache")


def test_a_cache_that_cannot_be_written_costs_no_export(no_room, tmp_path, tiny_model):
    assert no_room.blob("key", lambda: b"made") == b"made"
    no_room.prune_artefacts()
    assert export_model(tiny_model(), "rpi-4b", out=tmp_path / "out", cache=no_room).folder == tmp_path / "out"


def test_pruning_leaves_the_newest_and_what_is_being_written(tmp_path):
    cache = Cache(tmp_path)
    for age, name in (
        (4, "oldest"),
        (3, "older"),
        (2, ".part-now"),
        (90_000, ".part-of-a-dead-process"),
        (1, "newest"),
    ):
        folder = tmp_path / "artefact" / name
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(bytes(1000))
        os.utime(folder, times=(time.time() - age, time.time() - age))
    cache.prune_artefacts(limit=0)
    assert {path.name for path in (tmp_path / "artefact").iterdir()} == {".part-now", "newest"}
