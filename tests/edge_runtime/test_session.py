"""Sessions: the manifest's tensors are what runs, and mistakes are named."""

import numpy as np
import pytest

from device_profiles import MissingDependencyError
from edge_runtime.engine_version import EngineVersionError, check_version
from edge_runtime.manifest import Engine, TensorSpec
from edge_runtime.places import LocalPlace
from edge_runtime.session import EngineError, InputError, open_session


def test_a_session_runs_the_model(add_one):
    session = open_session(add_one)
    (y,) = session.run([np.zeros((1, 4), np.float32)])
    assert y.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert [spec.name for spec in session.inputs] == ["x"]
    session.close()


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros((1, 5), np.float32)], [np.zeros((1, 4), np.float64)], [np.zeros((1, 4), np.float32)] * 2]
)
def test_inputs_that_differ_are_refused(add_one, arrays):
    with pytest.raises(InputError, match="Wanted"):
        open_session(add_one).run(arrays)


def test_a_model_that_the_engine_refuses_is_named(add_one):
    add_one.entry.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"model\.onnx"):
        open_session(add_one)


def test_tensors_that_the_model_lacks_are_named(make_add_one):
    wrong = TensorSpec(name="x", engine_name="pixels", dtype="float32", shape=(1, 4))
    with pytest.raises(EngineError, match="pixels"):
        open_session(make_add_one("wrong", inputs=(wrong,)))


def test_another_major_version_of_the_engine_is_refused_and_a_minor_one_is_told(make_add_one):
    with pytest.raises(EngineVersionError, match=r"onnxruntime 0\.9\.1.*Install"):
        open_session(make_add_one("old", engine=Engine(name="onnxruntime", built="0.9.1")))
    open_session(make_add_one("both", engine=Engine(name="onnxruntime", built="0.9.1", tested=("1.2.0",)))).close()
    report = LocalPlace().verify(make_add_one("minor", engine=Engine(name="onnxruntime", built="1.2.0")))
    assert report.passed
    assert report.built == "1.2.0"
    assert report.installed in report.remark


@pytest.mark.parametrize(
    ("built", "found"), [("not run; checked on litert 2.1", "1.3"), ("1", None), ("1.30.0", "1.30")]
)
def test_what_cannot_be_compared_or_is_equal_needs_no_remark(built, found):
    assert check_version(Engine(name="onnxruntime", built=built), found) is None


def test_an_engine_of_a_device_is_refused_on_the_host(make_add_one):
    artefact = make_add_one("mcu", engine=Engine(name="generated-c", built="1"))
    with pytest.raises(EngineError, match="generated-c"):
        open_session(artefact)


def test_a_missing_engine_names_the_extra(add_one, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edge_runtime.backends.onnxrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"headtail\[ort\]"):
        open_session(add_one)


def test_tflite_runtime_is_refused_under_numpy_2(make_add_one):
    artefact = make_add_one("lite", engine=Engine(name="tflite-runtime", built="2.14.0"))
    assert int(np.__version__.split(".")[0]) >= 2
    with pytest.raises(EngineError, match="numpy < 2"):
        open_session(artefact)
