"""TensorRT itself cannot be installed here: these tests replay `fake_tensorrt` in both of its versions."""

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles import list_boards, load_board
from device_profiles.errors import MissingDependencyError
from edge_runtime.artefact import write_artefact
from edge_runtime.backends import trt, trt_build, trt_providers
from edge_runtime.backends.trt_boards import DeployRefusedError, check_deploy, tensorrt_major
from edge_runtime.backends.trt_cache import BuildOptions, EngineCache, EngineKey
from edge_runtime.backends.trt_cuda import CudaError, open_cuda
from edge_runtime.backends.trt_race import run_race
from edge_runtime.manifest import Engine
from edge_runtime.session import EngineError, InputError, open_session

_SPEC = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
fake = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake)

VERSIONS = ("10.3.0", "11.0.0.114")


@pytest.fixture
def artefact(add_one, tmp_path):
    """The tiny network of this folder's conftest, for a Jetson."""
    manifest = msgspec.structs.replace(
        add_one.manifest, target="jetson-orin-nano-8gb", engine=Engine(name="tensorrt", built="not run"), files=()
    )
    files = {path: add_one.path(path) for path in add_one.manifest.files_by_path}
    return write_artefact(tmp_path / "jetson", manifest, files)


@pytest.fixture(params=VERSIONS)
def device(request, monkeypatch, tmp_path):
    """A device with a GPU and one of the two TensorRT versions."""
    machine = SimpleNamespace(cuda=None, cudas=[])

    def open_fake():
        machine.cuda = fake.FakeCuda()
        machine.cudas.append(machine.cuda)
        return machine.cuda

    machine.library = fake.make_tensorrt(request.param, machine)
    machine.cache = EngineCache(tmp_path / "engines")
    machine.states = []
    machine.options = trt.TensorRtOptions(
        cache=machine.cache, on_state=lambda state, detail: machine.states.append((state, detail))
    )
    monkeypatch.setitem(sys.modules, "tensorrt", machine.library)
    monkeypatch.setattr(trt, "open_cuda", open_fake)
    return machine


def _builds(device):
    return [call for call in device.library.calls if call[0] == "build"]


def test_the_engine_is_built_once_and_taken_from_the_cache_after(device, artefact):
    x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    for _ in range(2):
        session = trt.open_backend(artefact, 1, device.options)
        np.testing.assert_array_equal(session.run([x])[0], x + 1)
        session.close()
    assert len(_builds(device)) == 1
    assert device.states == [
        ("building", "add-one"), ("building", "Building Engine"), ("ready", "tensorrt"), ("ready", "tensorrt"),
    ]  # fmt: skip
    assert all(cuda.closed for cuda in device.cudas)


def test_networks_are_strongly_typed_in_both_versions(device, artefact):
    trt.open_backend(artefact, 1, device.options).close()
    ((_, flags),) = [call for call in device.library.calls if call[0] == "create_network"]
    assert flags == (1 << 1 if device.library.__version__.startswith("10.") else 0)


def test_the_session_runs_in_another_thread_than_it_was_opened_in(device, artefact):
    session = trt.open_backend(artefact, 1, device.options)
    before = device.cuda.current
    session.run([np.zeros((1, 4), np.float32)])
    assert device.cuda.current == before + 1
    with pytest.raises(InputError, match="float32"):
        session.run([np.zeros((1, 4), np.float64)])
    session.close()


def test_a_timing_cache_is_kept_and_used_by_the_next_build(device, artefact):
    trt.open_backend(artefact, 1, device.options).close()
    other = trt.TensorRtOptions(build=BuildOptions(optimisation_level=5, workspace_bytes=1 << 20), cache=device.cache)
    trt.open_backend(artefact, 1, other).close()
    first, second = _builds(device)
    assert first[1:] == (3, {}, b"")
    assert second[1] == 5
    assert list(second[2].values()) == [1 << 20]
    assert second[3] == f"{device.library.__version__} timings".encode()


def test_a_timing_cache_of_another_version_is_left_aside(device, artefact, caplog):
    key = _key(onnx_sha256="0" * 64, tensorrt=device.library.__version__)
    device.cache.store_timings(key, b"9.9.9 timings")
    with caplog.at_level(logging.WARNING):
        trt.open_backend(artefact, 1, device.options).close()
    assert _builds(device)[0][3] == b""
    assert "does not fit" in caplog.text


def test_an_edited_engine_is_built_again(device, artefact):
    trt.open_backend(artefact, 1, device.options).close()
    (engine,) = device.cache.folder.glob("*.engine")
    data = bytearray(engine.read_bytes())
    data[-1] ^= 1
    engine.write_bytes(bytes(data))
    trt.open_backend(artefact, 1, device.options).close()
    assert len(_builds(device)) == 2
    assert device.cache.folder.stat().st_mode & 0o077 == 0


def test_what_the_parser_and_the_builder_say_is_in_the_error(device, artefact, add_one):
    device.library.fail_build = True
    with pytest.raises(trt_build.BuildError, match="could not find any implementation for node Conv_0"):
        trt.open_backend(artefact, 1, device.options)
    assert device.cuda.closed
    assert not list(device.cache.folder.glob("*.engine"))


def test_a_refused_file_names_the_parsers_reason(device):
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w_zero_point", TensorProto.UINT8, [1], [3])
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight])).SerializeToString()
    device.cuda = fake.FakeCuda()
    with pytest.raises(trt_build.BuildError, match="w_zero_point is UINT8"):
        trt_build.build_engine(device.library, model, BuildOptions())


def test_an_engine_with_other_tensors_than_the_manifest_is_refused(device, artefact, tmp_path):
    manifest = artefact.manifest
    wide = tuple(msgspec.structs.replace(spec, shape=(1, 8)) for spec in manifest.inputs)
    files = {path: artefact.path(path) for path in manifest.files_by_path}
    wrong = write_artefact(
        tmp_path / "wrong", msgspec.structs.replace(manifest, inputs=wide, files=(), golden=()), files
    )
    with pytest.raises(EngineError, match=r"Wanted float32 \(1, 8\) for x"):
        trt.open_backend(wrong, 1, device.options)
    assert all(cuda.closed for cuda in device.cudas)


@pytest.mark.parametrize("version", ["8.2.1", "8.6.1", "9.0.0", "12.0.0", "x"])
def test_other_versions_are_refused_by_name(version):
    with pytest.raises(trt_build.TensorRtVersionError, match=f"found {version}"):
        trt_build.check_version(SimpleNamespace(__version__=version))


def test_without_the_library_the_extra_is_named(artefact, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"headtail\[tensorrt\]"):
        open_session(artefact)


def test_the_module_names_no_calibrator_and_no_precision_flag():
    folder = Path(trt.__file__).parent
    for path in folder.glob("trt*.py"):
        text = path.read_text()
        assert "int8_calibrator" not in text
        assert "BuilderFlag" not in text


def test_the_device_package_imports_no_engine_until_it_is_asked():
    code = (
        "import sys, edge_runtime.backends.trt; print(sorted({'tensorrt', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# the cache


def _key(**changes):
    values = {"onnx_sha256": "a" * 64, "tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7"}
    return EngineKey(**{**values, "options": BuildOptions(), **changes})


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "onnx_sha256": st.text("0123456789abcdef", min_size=64, max_size=64),
            "tensorrt": st.sampled_from(["10.3.0", "10.3.0.26", "11.0.0"]),
            "gpu": st.sampled_from(["Orin", "NVIDIA H200"]),
            "compute_capability": st.sampled_from(["8.7", "9.0"]),
            "options": st.builds(BuildOptions, optimisation_level=st.integers(0, 5)),
        },
    )
)
def test_engines_are_found_by_everything_they_depend_on(changes, tmp_path_factory):
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    cache.store_engine(_key(), b"engine")
    wanted = _key(**changes)
    assert cache.load_engine(wanted) == (b"engine" if wanted == _key() else None)


@given(data=st.binary(max_size=60))
def test_a_damaged_record_counts_as_absent(data, tmp_path_factory):
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    cache.store_engine(_key(), b"engine")
    (cache.folder / f"{_key().digest}.json").write_bytes(data)
    assert cache.load_engine(_key()) is None


# the race


class _Session:
    def __init__(self, clock, seconds, opened):
        self.clock, self.seconds, self.opened = clock, seconds, opened
        opened.append(1)
        assert len(opened) == 1, "two engines open at once"

    def run(self, arrays):
        if self.seconds is None:
            raise EngineError("out of memory")
        self.clock[0] += self.seconds
        return list(arrays)

    def close(self):
        self.opened.pop()


def _race(**seconds):
    clock, opened = [0.0], []
    contenders = {name: (lambda s=value: _Session(clock, s, opened)) for name, value in seconds.items()}
    return run_race(contenders, [], clock=lambda: clock[0])


def test_the_fastest_engine_wins_and_ties_go_to_the_first():
    assert _race(tensorrt=0.004, cuda=0.003).winner == "cuda"
    assert _race(tensorrt=0.25, cuda=0.25).winner == "tensorrt"
    assert _race(tensorrt=0.25, cuda=0.5).median_ms == {"tensorrt": 250.0, "cuda": 500.0}


def test_an_engine_that_fails_loses_and_is_named():
    result = _race(tensorrt=None, cuda=0.003)
    assert (result.winner, result.failed) == ("cuda", {"tensorrt": "out of memory"})
    with pytest.raises(EngineError, match="tensorrt: out of memory; cuda: out of memory"):
        _race(tensorrt=None, cuda=None)


def test_a_race_is_run_once_and_remembered(device, artefact, monkeypatch):
    opened = []

    def open_fake_provider(artefact, name, threads, cache):
        opened.append(name)
        raise EngineError("libcublas.so.12 is missing")

    monkeypatch.setattr(trt, "gpu_providers", lambda: ("ort-tensorrt", "ort-cuda"))
    monkeypatch.setattr(trt, "open_provider", open_fake_provider)
    for _ in range(2):
        trt.open_backend(artefact, 1, device.options).close()
    assert opened == ["ort-tensorrt", "ort-cuda"]
    assert [state for state, _ in device.states].count("racing") == 1
    assert len(_builds(device)) == 1


def test_a_provider_that_wins_serves(device, artefact, monkeypatch):
    class Winner:
        def __init__(self):
            self.inputs, self.outputs = artefact.manifest.inputs, artefact.manifest.outputs

        def run(self, arrays):
            return [arrays[0] + 1]

        def close(self):
            pass

    device.library.fail_build = True
    monkeypatch.setattr(trt, "gpu_providers", lambda: ("ort-cuda",))
    monkeypatch.setattr(trt, "open_provider", lambda *_: Winner())
    session = trt.open_backend(artefact, 1, device.options)
    assert isinstance(session, Winner)
    assert device.states[-1] == ("ready", "ort-cuda")


def test_without_gpu_providers_there_is_no_race(device, artefact):
    """The onnxruntime that is installed here has no GPU providers."""
    assert trt_providers.gpu_providers() == ()
    trt.open_backend(artefact, 1, device.options).close()
    assert "racing" not in [state for state, _ in device.states]


def test_a_provider_that_falls_back_to_the_cpu_is_refused(artefact, tmp_path):
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        trt_providers.open_provider(artefact, "ort-cuda", 1, tmp_path)


# boards


def test_boards_are_told_apart_by_the_newest_tensorrt_they_can_have():
    found = {board.id: tensorrt_major(board) for board in list_boards() if board.kind == "linux-gpu"}
    assert [found[name] for name in ("jetson-nano", "jetson-tx2", "jetson-xavier-nx")] == [8, 8, 8]
    assert [found[name] for name in ("jetson-orin-nano-8gb", "jetson-agx-orin-64gb")] == [10, 10]
    assert found["jetson-agx-thor"] >= 10
    assert tensorrt_major(load_board("rpi-4b")) is None


def test_deploy_to_an_old_jetpack_is_refused_by_name(artefact):
    check_deploy(artefact.manifest)
    other = Engine(name="litert", built="2.3.0")
    for target, engine in (("jetson-nano", artefact.manifest.engine), ("jetson-xavier-nx", other)):
        with pytest.raises(DeployRefusedError, match=rf"found {target} with TensorRT 8\.x.*trtexec\.txt"):
            check_deploy(msgspec.structs.replace(artefact.manifest, target=target, engine=engine))
    with pytest.raises(DeployRefusedError, match="found rpi-4b with"):
        check_deploy(msgspec.structs.replace(artefact.manifest, target="rpi-4b"))
    check_deploy(msgspec.structs.replace(artefact.manifest, target="rpi-4b", engine=other))


def test_a_machine_without_a_driver_is_told_so(monkeypatch):
    monkeypatch.setattr("edge_runtime.backends.trt_cuda._LIBRARIES", ("libno-such-driver.so",))
    with pytest.raises(CudaError, match="export for a CPU board"):
        open_cuda()
