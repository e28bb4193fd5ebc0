"""The reference engines run in a process of their own: whatever a file does to them is a named error here."""

import subprocess

import numpy as np
import pytest

from export.mcu import oracle as oracle_module
from export.mcu.errors import ProofError
from export.mcu.network import lower
from export.mcu.oracle import LitertOracle, Oracle
from export.mcu.vectors import proof_inputs


@pytest.fixture(scope="module")
def good_model(tflite_builder) -> bytes:
    net = tflite_builder()
    source = net.activation((1, 6, 5, 4), 0.05, 3)
    return net.finish([source], [net.depthwise(source)])


def without_bias(net) -> bytes:
    source = net.activation((1, 6, 5, 4))
    out = net.depthwise(source)
    net.operators[0].inputs[2] = -1
    return net.finish([source], [out])


def flat_logits(net) -> bytes:
    source = net.activation((1, 512), 0.05, 0)
    return net.finish([source], [net.unary("SOFTMAX", source)])


@pytest.mark.parametrize(
    ("make", "engine", "signal"),
    [
        (without_bias, Oracle, "SIGSEGV"),
        (flat_logits, Oracle, "SIGABRT"),
        (flat_logits, LitertOracle, "SIGABRT"),
    ],
)
def test_a_crash_of_the_engine_names_the_signal_and_known_causes(tflite_builder, make, engine, signal):
    model = make(tflite_builder())
    network = lower(model)
    with pytest.raises(ProofError, match=rf"{engine.name}.*{signal} ended it.*Known cause"):
        engine(model, network).run_all(proof_inputs(network))


@pytest.mark.parametrize("engine", [Oracle, LitertOracle])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: bytes(len(data))])
def test_a_damaged_file_is_refused_by_name(good_model, engine, damage):
    network = lower(good_model)
    with pytest.raises(ProofError, match=f"{engine.name} (refuses the model|.*ended it)"):
        engine(damage(good_model), network).run_all(proof_inputs(network))


@pytest.mark.parametrize("engine", [Oracle, LitertOracle])
def test_an_engine_that_takes_too_long_is_ended(good_model, engine):
    network = lower(good_model)
    with pytest.raises(ProofError, match=r"within 0\.001 s"):
        engine(good_model, network, limit_s=0.001).run_all(proof_inputs(network))


@pytest.mark.parametrize("engine", [Oracle, LitertOracle])
def test_one_process_runs_all_cases_each_with_its_own_integers(good_model, engine, monkeypatch):
    network, started, run = lower(good_model), [], subprocess.run
    monkeypatch.setattr(oracle_module.subprocess, "run", lambda *a, **k: started.append(a) or run(*a, **k))
    cases = proof_inputs(network, count=7)
    together = engine(good_model, network).run_all(cases)
    assert len(started) == 1
    assert len(together) == len(cases)
    for case, truth in zip(cases, together, strict=True):
        (alone,) = engine(good_model, network).run_all([case])
        assert np.array_equal(truth.inputs[0], case[0])
        assert np.array_equal(truth.outputs[0], alone.outputs[0])
    assert not np.array_equal(together[0].outputs[0], together[1].outputs[0])


def test_modules_in_the_working_directory_are_not_run(good_model, monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('run from the working directory')")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise SystemExit('run from the working directory')")
    monkeypatch.chdir(tmp_path)
    network = lower(good_model)
    assert len(Oracle(good_model, network).run_all(proof_inputs(network))) == 5
