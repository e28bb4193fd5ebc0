"""The profiler on tiny networks: real engine, real child processes, names of the user's nodes."""

import contextlib
import json
import os
import re
import sys

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from device_profiles.measurement import Profile, load_profile
from edge_runtime import cli
from edge_runtime.artefact import write_artefact
from edge_runtime.manifest import Engine, Manifest, ModelInfo, TensorSpec, Tool
from edge_runtime.places import LocalPlace
from edge_runtime.profile_child import make_inputs
from edge_runtime.profile_energy import EnergyError
from edge_runtime.profile_graph import GraphError, read_graph
from edge_runtime.profile_kernels import classify, count_macs
from edge_runtime.profile_mapping import map_nodes
from edge_runtime.profile_process import ProfilerError
from edge_runtime.profile_text import describe, label
from edge_runtime.profile_trace import TraceError, parse_events, read_trace
from edge_runtime.profiler import ProfileOptions, profile_artefact
from edge_runtime.session import EngineError

QUICK = ProfileOptions(runs=30, seconds=0.05, limit_s=5.0)
CHANNELS = 16


def weight(name, *shape):
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def residual_net():
    """Two convolutions with a residual sum, a depthwise one with Clip, pooling and a linear layer; ten nodes."""
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv_1", **same),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu_1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv_2", **same),
        helper.make_node("Add", ["c2", "r1"], ["a2"], name="add_2"),
        helper.make_node("Relu", ["a2"], ["r2"], name="relu_2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="depthwise_3", group=CHANNELS, **same),
        helper.make_node("Clip", ["c3", "low", "high"], ["r3"], name="clip_3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], name="linear", transB=1),
    ]
    weights = [weight("w1", CHANNELS, 3, 3, 3), weight("b1", CHANNELS), weight("w2", CHANNELS, CHANNELS, 3, 3)]
    weights += [weight("b2", CHANNELS), weight("w3", CHANNELS, 1, 3, 3), weight("w4", 10, CHANNELS), weight("b4", 10)]
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def spec(name, shape, dtype="float32"):
    return TensorSpec(name=name, engine_name=name, dtype=dtype, shape=shape)


def write_net(folder, data, **engine):
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="residual", source_sha256="2" * 64),
        role="whole",
        target="linux-x86-64",
        precision="fp32",
        engine=Engine(**{"name": "onnxruntime", "built": "1", **engine}),
        entry="model.onnx",
        inputs=(spec("x", (1, 3, 32, 32)),),
        outputs=(spec("y", (1, 10)),),
        files=(),
    )
    return write_artefact(folder, manifest, {"model.onnx": data})


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """The residual network as an artefact."""
    return write_net(tmp_path_factory.mktemp("net") / "net", residual_net().SerializeToString())


@pytest.fixture(scope="module")
def profile(net):
    """Its profile."""
    return profile_artefact(net, ProfileOptions(runs=30, seconds=0.05, minutes=0.003, power="idle=1,active=3"))


def test_kernels_carry_the_names_of_the_user_s_nodes(profile):
    nodes = {kernel.nodes: kernel for kernel in profile.kernels}
    fused = nodes[("conv_2", "add_2", "relu_2")]
    assert (fused.kind, fused.macs) == ("conv", 32 * 32 * CHANNELS * CHANNELS * 9)
    depthwise = nodes[("depthwise_3", "clip_3")]
    assert (depthwise.kind, depthwise.macs) == ("depthwise", 32 * 32 * CHANNELS * 9)
    assert nodes[("linear",)].macs == 10 * CHANNELS
    assert ("f",) in nodes  # a node without a name is called by its output
    assert depthwise.bytes == 4 * (2 * 32 * 32 * CHANNELS + CHANNELS * 9)


def test_most_kernel_time_is_mapped_and_the_rest_is_shown_as_unaccounted(profile):
    assert profile.mapped_share >= 0.9
    assert profile.kernel_sum + profile.unaccounted == pytest.approx(profile.whole_beside.p50)


def test_the_plain_run_and_the_instrumented_run_are_two(profile):
    assert profile.whole.runs >= 30
    assert 10 <= profile.whole_profiled.runs <= 50  # those that kept the core
    assert profile.whole_beside.runs == profile.whole_profiled.runs  # each has its neighbour
    assert profile.whole.p50 <= profile.whole.p90 <= profile.whole.p99


def test_memory_is_that_of_a_fresh_process(profile):
    weights = 4 * (CHANNELS * (27 + 1 + CHANNELS * 9 + 1 + 9) + 10 * CHANNELS + 10 + 2)
    assert profile.memory.weights == weights
    assert profile.memory.arena_peak >= 2 * 4 * 32 * 32 * CHANNELS
    assert 0 < profile.memory.rss_peak < 200 << 20 < profile.memory.rss_bare * 10


def test_stated_power_is_labelled_as_stated(profile):
    assert profile.energy.origin == "stated"
    assert profile.energy.mj_per_run == pytest.approx(2 * profile.whole.p50)
    assert "stated by the user, not measured" in describe(profile)


def test_a_sustained_run_has_a_curve(profile):
    assert len(profile.sustained) == 6
    assert all(0 < one.p50 <= one.p90 for one in profile.sustained)
    assert re.search(r"^ +0\.0 to 0\.\d s +p50 ", describe(profile), re.MULTILINE)  # no minute was measured
    minute = msgspec.structs.replace(profile.sustained[0], begin_s=60.001, seconds=60.002)
    assert "minute 2 " in describe(msgspec.structs.replace(profile, sustained=(minute,)))


def test_a_profile_names_the_settings_it_holds_for(profile):
    import onnxruntime

    engine = profile.engine
    assert (engine.name, engine.version) == ("onnxruntime", onnxruntime.__version__)
    assert (engine.optimisation, engine.threads, engine.provider) == ("all", 1, None)


@pytest.mark.parametrize("level", ["extended", "basic", "none"])
def test_every_optimisation_level_is_mapped(tmp_path, level):
    net = write_net(tmp_path / "net", residual_net().SerializeToString(), optimisation=level)
    found = profile_artefact(net, QUICK)
    assert found.mapped_share == 1.0
    labels = [name for kernel in found.kernels for name in kernel.nodes]
    assert len(labels) == len(set(labels)) == 10
    if level == "none":
        assert len(found.kernels) == 10


def test_more_threads_have_no_cpu_latency(net):
    found = LocalPlace().profile(net, ProfileOptions(threads=2, runs=30, seconds=0.05))
    assert (found.engine.threads, found.whole_cpu, found.condition.contention) == (2, None, None)


def test_a_model_that_the_engine_refuses_is_named(tmp_path):
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", [], [])
    for name, data, word in (
        ("net", helper.make_model(graph).SerializeToString(), "onnxruntime"),
        ("none", b"not a model", "DamagedModelError"),
    ):
        with pytest.raises(EngineError, match=word):
            profile_artefact(write_net(tmp_path / name, data), QUICK)


def test_wrong_stated_power_is_said_before_anything_runs(tmp_path, net):
    with pytest.raises(EnergyError):
        profile_artefact(net, ProfileOptions(power="idle=9,active=1"))


def test_edge_agent_profile_prints_json_that_loads_again(net, tmp_path, capsys):
    out = tmp_path / "profile.json"
    with pytest.raises(SystemExit) as done:
        cli.main(["profile", str(net.folder), "--runs", "20", "--json", "--out", str(out)])
    assert done.value.code == 0
    printed = msgspec.json.decode(capsys.readouterr().out, type=Profile)
    assert load_profile(out) == printed


def test_edge_agent_profile_speaks_to_people(net, capsys):
    with pytest.raises(SystemExit):
        cli.main(["profile", str(net.folder), "--runs", "20"])
    text = capsys.readouterr().out
    assert "conv_2 + add_2 + relu_2" in text
    assert "energy             unknown" in text


def test_the_graph_reader_agrees_with_onnx(tmp_path):
    model = residual_net()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = read_graph(path)
    wanted = [(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node]
    assert [(n.name, n.op, n.inputs, n.outputs) for n in graph.nodes] == wanted
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert {name: (w.shape, w.nbytes) for name, w in graph.weights.items()} == {
        name: (array.shape, array.nbytes) for name, array in arrays.items()
    }


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4))
def test_a_broken_onnx_file_is_a_graph_or_a_named_error(tmp_path_factory, cut, flips):
    data = bytearray(residual_net().SerializeToString()[:cut])
    for at, value in flips:
        if at < len(data):
            data[at] = value
    path = tmp_path_factory.getbasetemp() / "broken.onnx"
    path.write_bytes(bytes(data))
    with contextlib.suppress(GraphError):
        read_graph(path)


def test_a_trace_without_kernels_or_of_changing_kernels_is_refused(tmp_path):
    node = {"cat": "Node", "name": "a_kernel_time", "dur": 1, "args": {"op_name": "Add"}}
    run = {"cat": "Session", "name": "model_run", "dur": 2}
    with pytest.raises(TraceError, match="found none"):
        parse_events([run])
    with pytest.raises(TraceError, match="same kernels"):
        parse_events([node, run, {**node, "name": "b_kernel_time"}, run])
    (tmp_path / "trace").write_text("{]")
    with pytest.raises(TraceError):
        read_trace(tmp_path / "trace")
    (tmp_path / "trace").write_text(json.dumps([{**node, "args": {}}, run]))
    with pytest.raises(TraceError):
        read_trace(tmp_path / "trace")


def test_random_inputs_stay_in_range_of_small_tables(net):
    specs = [spec("a", (4, 5), "int64"), spec("b", (3,), "bool"), spec("c", (8,), "uint8"), spec("d", (2, 2))]
    arrays = make_inputs(net, specs)
    assert [one.dtype.name for one in arrays] == ["int64", "bool", "uint8", "float32"]
    assert set(arrays[0].ravel()) <= {0, 1}


def test_nothing_heavy_is_loaded_by_the_measuring_process():
    import subprocess

    code = "import sys, edge_runtime.profile_child, edge_runtime.profiler; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert not {"torch", "onnx", "onnxruntime", "rich", "matplotlib"} & set(done.stdout.split())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_node_belongs_to_at_most_one_kernel(data, tmp_path_factory):
    """Random graphs against themselves with random nodes merged away."""
    from edge_runtime.profile_graph import OnnxGraph, OnnxNode

    count = data.draw(st.integers(1, 12))
    nodes = []
    for index in range(count):
        sources = data.draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=3))
        op = data.draw(st.sampled_from(["Conv", "Relu", "Add", "MaxPool"]))
        names = tuple("x" if one < 0 else f"t{one}" for one in sources)
        nodes.append(OnnxNode(f"n{index}", op, names, (f"t{index}",)))
    original = OnnxGraph(tuple(nodes), {})
    kept = [node for node in nodes if data.draw(st.booleans())]
    groups = map_nodes(original, OnnxGraph(tuple(kept), {}))
    named = [name for group in groups for name in group]
    assert len(named) == len(set(named))
    for node, group in zip(kept, groups, strict=True):
        assert node.name in group


def test_work_of_a_kernel_without_shapes_is_not_guessed():
    from edge_runtime.profile_trace import Call

    call = Call("a", "Conv", 1, (), (), 0, 0, 0, 0, 0)
    assert count_macs(call, []) == 0
    assert classify(call, []) == "conv"


def test_int8_kernels_in_another_layout_carry_the_user_s_names(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            generator = np.random.default_rng(0)
            self.left = iter([{"x": generator.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(3)])

        def get_next(self):
            return next(self.left, None)

    onnx.save(residual_net(), tmp_path / "m.onnx")
    quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", Reader(), quant_format=QuantFormat.QDQ)
    net = write_net(tmp_path / "net", (tmp_path / "q.onnx").read_bytes())
    found = profile_artefact(net, QUICK)
    labels = [name for kernel in found.kernels for name in kernel.nodes]
    assert len(labels) == len(set(labels))
    assert {"conv_1", "conv_2", "depthwise_3", "add_2", "linear"} <= set(labels)
    by_node = {name: kernel for kernel in found.kernels for name in kernel.nodes}
    assert by_node["conv_2"].macs == 32 * 32 * CHANNELS * CHANNELS * 9
    depthwise = by_node["depthwise_3"]
    assert (depthwise.op, depthwise.kind, depthwise.macs) == ("QLinearConv", "depthwise", 32 * 32 * CHANNELS * 9)
    assert "depthwise_3" in label(depthwise)
    assert "DequantizeLinear" not in label(depthwise)


def tflite_net():
    """y = logistic(x) as a .tflite file."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, [1, 64], schema.TensorType.FLOAT32, 0
        return made

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LOGISTIC
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor("x"), tensor("y")], [0], [1], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_litert_is_measured_as_a_whole_and_says_that_kernels_are_missing(tmp_path):
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="test"),
        model=ModelInfo(name="logistic", source_sha256="3" * 64),
        role="whole",
        target="linux-x86-64",
        precision="fp32",
        engine=Engine(name="litert", built="2"),
        entry="model.tflite",
        inputs=(spec("x", (1, 64)),),
        outputs=(spec("y", (1, 64)),),
        files=(),
    )
    net = write_artefact(tmp_path / "net", manifest, {"model.tflite": tflite_net()})
    found = profile_artefact(net, QUICK)
    assert found.kernels == ()
    assert found.status in ("incomplete", "noisy")
    assert any("no times of single kernels: litert" in remark for remark in found.remarks)
    assert found.whole.runs >= 30
    assert found.memory.rss_peak > 0


def test_a_meter_s_energy_is_measured_above_idle(net, monkeypatch):
    from edge_runtime import profiler
    from edge_runtime.profile_meters import PollingMeter

    monkeypatch.setattr(profiler, "find_meter", lambda: PollingMeter("steady", lambda: 5.0, period_s=0.02))
    found = profile_artefact(net, ProfileOptions(runs=10, seconds=0.05, energy_s=0.4))
    assert (found.energy.provider, found.energy.origin) == ("steady", "measured")
    assert found.energy.mj_per_run == pytest.approx(0.0, abs=1e-6)
    assert found.energy.active_w == pytest.approx(5.0)
    assert found.energy.samples >= 5


def test_a_meter_that_stands_still_gives_no_energy_and_says_so(net, monkeypatch):
    from edge_runtime import profiler
    from edge_runtime.profile_meters import PollingMeter

    monkeypatch.setattr(profiler, "find_meter", lambda: PollingMeter("dead", lambda: None))
    found = profile_artefact(net, ProfileOptions(runs=10, seconds=0.05, energy_s=0.1))
    assert found.energy is None
    assert any("no energy from dead" in remark for remark in found.remarks)


def test_the_log_of_an_external_meter_is_read_after_the_run(net, tmp_path):
    import time

    log, now = tmp_path / "meter.csv", time.time()
    rows = [f"{now + index / 10},5.0,400" for index in range(600)]
    log.write_text("\n".join(["time,voltage,current_ma", *rows]))
    found = profile_artefact(net, ProfileOptions(runs=10, seconds=0.05, energy_s=0.5, power_csv=log))
    assert found.energy.provider == "usb-csv"
    assert found.energy.idle_w == pytest.approx(2.0)


def test_runs_that_count_are_neither_warm_up_nor_first_of_a_block():
    from edge_runtime.profile_runs import kept_runs

    assert kept_runs(5 + 3 + 5, [1, 2], [2, 3]) == [6, 7, 10, 11, 12]


def test_a_process_that_dies_is_a_named_error(net, tmp_path):
    from edge_runtime.profile_child import Request
    from edge_runtime.profile_process import MeasuringProcess, take_turns

    request = Request(artefact=str(net.folder), mode="plain", threads=1)
    with MeasuringProcess(request, tmp_path) as process:
        assert process.wait_ready()
        process.kill()
        take_turns(process, None)
        with pytest.raises(ProfilerError, match="exit status -9"):
            process.finish()


@pytest.mark.parametrize("options", [ProfileOptions(minutes=-1.0), ProfileOptions(threads=0)], ids=str)
def test_options_out_of_range_are_refused_before_anything_runs(add_one, options):
    with pytest.raises(ProfilerError, match="at least one thread and 0 to 1440 minutes"):
        profile_artefact(add_one, options)
