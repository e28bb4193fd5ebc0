import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edge_runtime.artefact import write_artefact
from edge_runtime.places import GoldenError, local
from edge_runtime.session import EngineError


def changed(network, folder, expected, **golden):
    manifest = network.whole.manifest
    vector = msgspec.structs.replace(manifest.golden[0], **golden)
    files = {path: network.whole.path(path).read_bytes() for path in manifest.files_by_path}
    files["golden/o"] = expected.astype("<f4").tobytes()
    return write_artefact(folder, msgspec.structs.replace(manifest, files=(), golden=(vector,)), files)


@pytest.mark.parametrize(
    ("offset", "golden", "passes"),
    [
        (0.0, {"compare": "exact"}, True),
        (0.01, {"compare": "exact"}, False),
        (0.01, {"compare": "absolute", "tolerance": 0.02}, True),
        (0.01, {"compare": "absolute", "tolerance": 0.005}, False),
        (np.nan, {"compare": "absolute", "tolerance": 0.005}, False),
        (0.5, {"compare": "argmax"}, True),
    ],
)
def test_golden_vectors_are_compared_as_the_manifest_says(network, tmp_path, offset, golden, passes):
    report = local().verify(changed(network, tmp_path / "a", network.y + offset, **golden))
    assert report.passed == passes
    assert report.place == "local"
    assert report.checks[0].ms > 0


@pytest.mark.parametrize(("group", "error"), [("inputs", EngineError), ("outputs", GoldenError)])
def test_a_model_whose_shapes_are_not_the_manifests_is_named(network, tmp_path, group, error):
    manifest = network.whole.manifest
    wider = tuple(msgspec.structs.replace(spec, shape=(1, 2, 8)) for spec in getattr(manifest, group))
    files = {path: network.whole.path(path).read_bytes() for path in manifest.files_by_path}
    files["golden/i" if group == "inputs" else "golden/o"] = bytes(64)
    artefact = write_artefact(tmp_path / "a", msgspec.structs.replace(manifest, files=(), **{group: wider}), files)
    with pytest.raises(error):
        local().verify(artefact)


def test_a_vector_of_another_shape_is_named(network, tmp_path):
    artefact = changed(network, tmp_path / "a", network.y, inputs=("golden/i", "golden/i"))
    with pytest.raises(GoldenError, match="1 inputs"):
        local().verify(artefact)


@pytest.mark.parametrize(("offset", "status", "word"), [(0.0, 0, "ok"), (1.0, 1, "DIFFERS")])
def test_the_device_command_says_whether_an_artefact_is_good(network, tmp_path, offset, status, word):
    artefact = changed(network, tmp_path / "a", network.y + offset)
    code = "from edge_runtime.cli import main; main()"
    command = [sys.executable, "-c", code, "verify", str(artefact.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert word in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["checks"][0]["passed"] == (status == 0)
