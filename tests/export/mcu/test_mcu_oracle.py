"""The reference engines run in a process of their own: whatever a file does to them is a named error here."""

import gc
import os
import select
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from export.mcu import oracle_process
from export.mcu.errors import ProofError
from export.mcu.network import lower
from export.mcu.oracle import LitertOracle, Oracle
from export.mcu.oracle_process import Ended, OracleProcess
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
    ("make", "engine", "number"),
    [
        (without_bias, Oracle, "SIGSEGV"),
        (flat_logits, Oracle, "SIGABRT"),
        (flat_logits, LitertOracle, "SIGABRT"),
    ],
)
def test_a_crash_of_the_engine_names_the_signal_and_known_causes(tflite_builder, make, engine, number):
    model = make(tflite_builder())
    network = lower(model)
    with pytest.raises(ProofError, match=rf"{engine.name}.*{number} ended it.*Known cause"):
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
    with pytest.raises(ProofError, match=r"within 1e-06 s"):
        engine(good_model, network, limit_s=1e-6).run_all(proof_inputs(network))


@pytest.fixture
def begun(monkeypatch):
    """Processes that were begun; a test may give them an engine that misbehaves, in Python."""
    children, popen = [], subprocess.Popen

    def start(command, **options):
        children.append(popen(command, **options))
        return children[-1]

    monkeypatch.setattr(oracle_process.subprocess, "Popen", start)
    return children


@pytest.fixture
def misbehave(monkeypatch):
    def set_up(code):
        lines = f"import os, sys\nfrom export.mcu import oracle_child as child\ndef invoke(self):\n {code}\n"
        run = "real, child.Micro.invoke = child.Micro.invoke, invoke\nsys.exit(child.main())"
        monkeypatch.setattr(oracle_process, "_CHILD", [sys.executable, "-c", lines + run])

    return set_up


@pytest.mark.parametrize("engine", [Oracle, LitertOracle])
def test_every_case_has_its_own_integers(good_model, engine):
    network, process = lower(good_model), OracleProcess()
    cases = proof_inputs(network, count=7)
    together = engine(good_model, network, process=process).run_all(cases)
    assert len(together) == len(cases)
    for case, truth in zip(cases, together, strict=True):
        (alone,) = engine(good_model, network, process=process).run_all([case])
        assert np.array_equal(truth.inputs[0], case[0])
        assert np.array_equal(truth.outputs[0], alone.outputs[0])
    assert not np.array_equal(together[0].outputs[0], together[1].outputs[0])


def test_a_process_is_begun_once_for_all_oracles_and_again_after_a_crash(good_model, tflite_builder, begun):
    network, process, bad = lower(good_model), OracleProcess(), without_bias(tflite_builder())
    cases = proof_inputs(network)
    wanted = Oracle(good_model, network, process=process).run_all(cases)
    LitertOracle(good_model, network, process=process).run_all(cases)
    assert len(begun) == 1
    with pytest.raises(ProofError, match="SIGSEGV"):
        Oracle(bad, lower(bad), process=process).run_all(proof_inputs(lower(bad)))
    again = Oracle(good_model, network, process=process).run_all(cases)
    assert len(begun) == 2
    assert all(np.array_equal(a.outputs[0], b.outputs[0]) for a, b in zip(wanted, again, strict=True))
    del process
    gc.collect()
    assert [child.poll() is None for child in begun] == [False, False]


def test_no_run_sees_what_another_left(good_model, misbehave, begun):
    misbehave("child.runs = getattr(child, 'runs', 0) + 1; assert child.runs == 1; real(self)")
    network, process = lower(good_model), OracleProcess()
    for _ in range(2):
        Oracle(good_model, network, process=process).run_all(proof_inputs(network, count=1))
    assert len(begun) == 1


def test_what_an_engine_prints_is_kept_from_the_answers(good_model, misbehave):
    misbehave("os.write(1, b'x' * 1_000_000); os.write(2, b'y' * 1_000_000); real(self)")
    network = lower(good_model)
    got = Oracle(good_model, network).run_all(proof_inputs(network))
    assert len(got) == 5


def test_a_long_complaint_is_told_by_its_end(good_model, misbehave):
    misbehave("os.write(2, b'y' * 1_000_000); os.write(1, b'the last words'); os.abort()")
    network = lower(good_model)
    with pytest.raises(ProofError, match=r"SIGABRT ended it: y{1,400}the last words\. Known") as error:
        Oracle(good_model, network).run_all(proof_inputs(network))
    assert len(str(error.value)) < 1000


def test_an_answer_that_is_longer_than_it_can_be_is_none(good_model, begun):
    process = OracleProcess()
    assert isinstance(process.ask("tflm", b"", limit_s=10, most_bytes=0), Ended)
    network, ask = lower(good_model), process.ask
    process.ask = lambda *words, limit_s, most_bytes: ask(*words, limit_s=limit_s, most_bytes=1000)
    with pytest.raises(ProofError, match="SIGKILL ended it"):
        Oracle(good_model, network, process=process).run_all(proof_inputs(network))
    assert all(child.poll() is not None for child in begun)


def test_a_process_that_the_system_killed_is_begun_again(good_model, begun):
    network, process = lower(good_model), OracleProcess()
    oracle = Oracle(good_model, network, process=process)
    oracle.run_all(proof_inputs(network))
    begun[0].kill()
    begun[0].wait()
    assert len(oracle.run_all(proof_inputs(network))) == 5
    assert begun[0].stdout.closed


def test_nothing_is_written_to_the_folder_for_temporary_files(good_model, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    network = lower(good_model)
    assert len(Oracle(good_model, network).run_all(proof_inputs(network))) == 5


ENDLESS = """
import sys
from pathlib import Path
from export.mcu import oracle_process
from export.mcu.network import lower
from export.mcu.oracle import Oracle
from export.mcu.vectors import proof_inputs
code = (
    "import os, signal, sys\\n"
    "from export.mcu import oracle_child as child\\n"
    "def invoke(self):\\n with open(sys.argv[1], 'w') as said: said.write(f'{os.getppid()} {os.getpid()}\\\\n')\\n while True: signal.pause()\\n"
    "child.Micro.invoke = invoke\\nsys.exit(child.main())"
)
oracle_process._CHILD = [sys.executable, "-c", code, sys.argv[2]]
model = Path(sys.argv[1]).read_bytes()
Oracle(model, lower(model)).run_all(proof_inputs(lower(model)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_stays_behind_when_a_program_is_ended_while_an_engine_runs(good_model, tmp_path, number):
    (tmp_path / "model.tflite").write_bytes(good_model)
    os.mkfifo(tmp_path / "said")
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "model.tflite"), str(tmp_path / "said")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as program:
        watched = [os.pidfd_open(int(pid)) for pid in (tmp_path / "said").read_text().split()]
        program.send_signal(number)
    for ended in watched:
        assert select.select([ended], [], [], 20)[0], "it runs on"
        os.close(ended)


def test_modules_in_the_working_directory_are_not_run(good_model, monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('run from the working directory')")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise SystemExit('run from the working directory')")
    monkeypatch.chdir(tmp_path)
    network = lower(good_model)
    assert len(Oracle(good_model, network).run_all(proof_inputs(network))) == 5
