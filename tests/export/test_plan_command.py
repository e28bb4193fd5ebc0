"""`headtail plan` on a real int8 artefact; times of the host come from a profile that is written here."""

import json
import re

import msgspec
import pytest

from device_profiles.load import load_board, this_board_id
from device_profiles.measurement import (
    EnergyUse,
    EngineSettings,
    KernelTime,
    MemoryUse,
    Percentiles,
    Profile,
    dump_profile,
)
from device_profiles.plan_table import parse_plan_table
from edge_runtime.adapt import Adapter
from export.cut_source import open_cut_source
from export.plan_inputs import PlaceTimes
from export.planning import variant_factors
from orchestrator.cli import run
from split.graph_work import work_of
from split.plan_problem import Cost
from split.plan_variant_file import PlaceFactors, VariantFile
from split.predict import Calibration, Interval, KernelClass, dump_calibration
from split.predict_memory import MemoryModel
from split.roofline import Roofline


def _times(ms):
    return Percentiles(p50=ms, p90=1.1 * ms, p99=1.3 * ms, runs=50)


@pytest.fixture(scope="module")
def artefact(exported):
    """A tiny whole int8 network for this machine's kind of board."""
    return exported(this_board_id(), precision="int8", calibrated=True)


@pytest.fixture(scope="module")
def profile(artefact):
    """A profile of it: 2 ms, in proportion to the work of each operator."""
    graph, engine = open_cut_source(artefact.folder).graph, artefact.manifest.engine
    kernels = tuple(
        KernelTime(
            name=node.name, nodes=(node.name,), kind="conv", macs=node.macs, bytes=1, latency=_times(1e-3 + node.macs)
        )
        for node in graph.nodes
    )
    return Profile(
        board=this_board_id(), model="tiny", model_sha256=artefact.manifest.files_by_path[artefact.manifest.entry].sha256,
        precision="int8", engine=EngineSettings(name=engine.name, version=engine.built, optimisation=engine.optimisation),
        created="2026-01-01T00:00:00Z", whole=_times(2.0), kernels=kernels,
        energy=EnergyUse(provider="stated", origin="stated", idle_w=1.0, active_w=3.0),
    )  # fmt: skip


@pytest.fixture
def plan(artefact, profile, tmp_path, capfd):
    """Runs the command: plan("--deadline", "80ms") -> (status, output, error)."""
    path = tmp_path / "host.json"
    path.write_bytes(dump_profile(profile))

    def run_plan(*words, device=("--device", "rpi-4b"), link="20mbit/15ms"):
        status = run(["plan", str(artefact.folder), *device, "--host-profile", str(path), "--link", link, *words])
        return (status, *capfd.readouterr())

    return run_plan


def test_a_slow_link_means_do_not_split(plan):
    status, out, _ = plan("--json", link="1kbit/200ms")
    report = json.loads(out)
    assert status == 0
    assert not report["splits"]
    assert report["reason"].startswith("Do not split: the whole model on the device")
    assert report["command"].startswith("headtail deploy ")
    assert any("derived" in remark for remark in report["remarks"])
    assert report["break_even"][0]["from_mbit"] == pytest.approx(0.1)


def test_table_and_chart_are_written_and_a_device_can_use_the_table(plan, tmp_path):
    table, chart = tmp_path / "plan.json", tmp_path / "chart.svg"
    status, out, _ = plan("--deadline", "80ms", "--out", str(table), "--chart", str(chart))
    assert status == 0
    assert "Build it: headtail" in out
    assert chart.read_bytes().startswith(b"<?xml")
    assert len(Adapter(parse_plan_table(table.read_bytes())).current.plan_id) == 16


def test_measured_profiles_on_both_sides_give_energy(plan, profile, tmp_path):
    path = tmp_path / "device.json"
    slow = msgspec.structs.replace(profile, whole=_times(200.0))
    path.write_bytes(dump_profile(slow))
    device = ("--device", this_board_id(), "--device-profile", str(path))
    status, out, _ = plan("--objective", "energy", "--json", device=device, link="100mbit/1ms")
    report = json.loads(out)
    assert status == 0
    assert report["chosen"]["energy_mj"] > 0
    assert any("stated" in remark for remark in report["remarks"])


def test_an_accuracy_floor_needs_known_accuracies(plan):
    status, _, text = plan("--min-accuracy", "0.5")
    assert (status, "have no known accuracy" in text) == (1, True)
    status, out, _ = plan("--min-accuracy", "0.5", "--accuracy", "0.7", "--json")
    assert status == 0
    assert json.loads(out)["chosen"]["accuracy"] == 0.7


def test_measured_variants_are_candidates(plan, profile, tmp_path):
    slow = tmp_path / "device.json"
    slow.write_bytes(dump_profile(msgspec.structs.replace(profile, whole=_times(200.0))))
    device = ("--device", this_board_id(), "--device-profile", str(slow))
    path = tmp_path / "variants.json"
    bottleneck = {"name": "12 channels", "head_ms": 0.001, "tail_ms": 0.001, "payload_bytes": 10, "accuracy": 0.6,
                  "build": ["headtail", "split", "m", "--method", "bottlefit"]}  # fmt: skip
    coder = {"name": "rans", "bytes_per_value": 0.4}
    path.write_text(json.dumps({"bottlenecks": [bottleneck], "encoders": [coder]}))
    status, out, _ = plan("--variants", str(path), "--json", device=device)
    assert status == 0
    report = json.loads(out)
    assert "12 channels" in [one["name"] for one in report["front"]]
    for broken in ({"colour": 1}, {"bottlenecks": [bottleneck | {"head_ms": -1.0}]}, {"encoders": [coder | {"bytes_per_value": 0}]},
                   {"pictures": [{"codec": "jpeg", "quality": 50, "accuracy": 1.5}]}):  # fmt: skip
        path.write_text(json.dumps(broken))
        status, _, text = plan("--variants", str(path))
        assert (status, text.split(":")[0]) in ((1, "PlanError"), (1, "ProfileError"))


def test_the_most_accuracy_sends_as_many_layers_as_the_link_carries_in_time(plan, profile, tmp_path):
    slow, path, out = tmp_path / "device.json", tmp_path / "variants.json", tmp_path / "plan.json"
    slow.write_bytes(dump_profile(msgspec.structs.replace(profile, whole=_times(200.0))))
    stream = [
        {"name": f"stream, {layers}", "head_ms": 5.0, "tail_ms": 1.0, "payload_bytes": size, "accuracy": accuracy, "layers": layers}
        for layers, size, accuracy in ((1, 300, 0.7), (2, 3000, 0.8), (0, 30_000, 0.9))
    ]  # fmt: skip
    path.write_text(json.dumps({"bottlenecks": stream}))
    words = ("--variants", str(path), "--deadline", "60ms", "--objective", "accuracy", "--json", "--out", str(out))
    device = ("--device", this_board_id(), "--device-profile", str(slow))
    found = []
    for link in ("0.2mbit/5ms", "2mbit/5ms", "50mbit/5ms"):
        status, text, _ = plan(*words, device=device, link=link)
        report = json.loads(text)
        assert status == 0
        found.append(report["chosen"]["accuracy"])
    assert found == [0.7, 0.8, 0.9]
    table = parse_plan_table(out.read_bytes())
    sent = [table.choices[table.lookup(rate, 5.0)].layers for rate in (25e3, 250e3, 6.25e6)]
    assert (table.objective, sent) == ("accuracy", [1, 2, 0])
    assert table.local == 0  # the fallback, though its accuracy is not known
    assert plan("--objective", "accuracy")[2].startswith("PlanError")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--deadline", "soon"), "PlanError"),
        (("--variants", "nowhere.json"), "PlanError"),
        (("--deadline", "0.001ms"), "PlanError"),
        (("--chart", "chart.gif"), "ChartError"),
    ],
)
def test_wrong_wishes_are_named(plan, words, error):
    status, _, text = plan(*words)
    assert status == 1
    assert text.startswith(error)


def test_wrong_links_boards_and_profiles_are_named(plan, profile, tmp_path):
    assert plan(link="fast")[2].startswith("LinkError")
    assert plan(device=("--device", "rpi-9"))[2].startswith("BoardError")
    assert plan(device=())[2].startswith("BoardError")
    assert plan(device=("--device", "linux-aarch64"))[2].startswith("PredictError")
    for change, error in (
        ({"engine": msgspec.structs.replace(profile.engine, version="0.1")}, "ProfileMismatchError"),
        ({"engine": msgspec.structs.replace(profile.engine, optimisation="none")}, "ProfileMismatchError"),
        ({"model_sha256": "0" * 64}, "ProfileMismatchError"),
        ({"status": "noisy"}, "NoisyProfileError"),
        ({"kernels": profile.kernels[:1]}, "MissingKernelError"),
    ):
        path = tmp_path / "other.json"
        path.write_bytes(dump_profile(msgspec.structs.replace(profile, **change)))
        status, _, text = plan("--device-profile", str(path), device=("--device", this_board_id()))
        assert (status, text.split(":")[0]) == (1, error)


def test_a_calibration_of_the_device_is_used_and_of_another_refused(plan, artefact, tmp_path):
    interval = Interval(low=0.8, high=1.25)
    other = KernelClass(
        kind="other", roofline=Roofline(macs_per_ms=1e3, bytes_per_ms=1e3, overhead_ms=0.1), interval=interval
    )
    settings = EngineSettings(name="onnxruntime", version="1")
    known = Calibration(board="rpi-4b", precision="int8", engine=settings, threads=1, origin="measured", classes=(), other=other,
                        whole=1.1, interval=interval)  # fmt: skip
    path = tmp_path / "calibration.json"
    path.write_bytes(msgspec.json.encode(known))
    status, out, _ = plan("--device-calibration", str(path), "--json", link="1kbit/100ms")
    report = json.loads(out)
    assert status == 0
    assert report["chosen"]["p95_ms"] == pytest.approx(1.25 * report["chosen"]["p50_ms"])
    assert any("90 % within" in remark for remark in report["remarks"])
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, board="rpi-5")))
    assert plan("--device-calibration", str(path))[2].startswith("ProfileMismatchError")


def test_a_calibrated_host_is_planned_without_a_measurement_and_memory_is_predicted(artefact, tmp_path, capfd):
    interval = Interval(low=0.8, high=1.25)
    fast = KernelClass(
        kind="other", roofline=Roofline(macs_per_ms=1e6, bytes_per_ms=1e6, overhead_ms=0.001), interval=interval
    )
    slow = msgspec.structs.replace(fast, roofline=Roofline(macs_per_ms=1e3, bytes_per_ms=1e3, overhead_ms=1.0))
    memory = MemoryModel(per_weight=2.0, per_kernel=1.0, base_bytes=1e6, samples=16, bare_bytes=50_000_000)
    settings = EngineSettings(name="onnxruntime", version="1")
    words = ["plan", str(artefact.folder), "--link", "100mbit/1ms", "--json"]
    for board, kernels, place in (("rpi-zero-2w", slow, "device"), ("rpi-5-8gb", fast, "host")):
        known = Calibration(board=board, precision="int8", engine=settings, threads=1, origin="measured", classes=(),
                            other=kernels, interval=interval, memory=memory)  # fmt: skip
        path = tmp_path / f"{place}.json"
        path.write_bytes(dump_calibration(known))
        words += [f"--{place}", board, f"--{place}-calibration", str(path)]
    assert run([*words, "--power", "idle=1,active=3,tx=4"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["chosen"]["kind"] != "local"
    assert report["chosen"]["energy_mj"] > 0
    cuts = [one for one in report["front"] if one["kind"] == "split"]
    assert all(one["rss_bytes"] > 51_000_000 for one in cuts)
    assert any("Peak memory is predicted from 16 networks" in remark for remark in report["remarks"])
    path.write_bytes(dump_calibration(msgspec.structs.replace(known, precision="fp32")))
    assert run(words) == 1
    assert capfd.readouterr().err.startswith("ProfileMismatchError")


def test_fit_names_every_part_and_measured_memory_is_compared(artefact, profile, tmp_path, capfd):
    path = tmp_path / "p.json"
    memory = MemoryUse(rss_bare=300 << 20, rss_peak=300 << 20)
    path.write_bytes(dump_profile(msgspec.structs.replace(profile, board="rpi-zero-2w", memory=memory)))
    assert run(["fit", str(artefact.folder), "--board", "rpi-zero-2w", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["verdict"] == "unknown"
    assert run(["fit", str(artefact.folder), "--board", "rpi-zero-2w", "--profile", str(path), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    parts = {one["part"]: one for one in found["fit"]["parts"]}
    assert found["verdict"] == "does not fit"
    assert (parts["memory"]["gap_bytes"], parts["operators"]["verdict"]) == (88 << 20, "fits")
    assert run(["fit", str(artefact.folder), "--board", "rpi-4b", "--profile", str(path)]) == 1
    assert capfd.readouterr().err.startswith("ProfileMismatchError")


def test_variants_measured_on_another_board_are_scaled_or_refused(plan, tmp_path):
    path = tmp_path / "variants.json"
    bottleneck = {"name": "12 channels", "head_ms": 0.001, "tail_ms": 0.001, "payload_bytes": 1, "accuracy": 0.6}
    given = {"measured_on": this_board_id(), "bottlenecks": [bottleneck], "accuracy": 0.9}
    path.write_text(json.dumps(given))
    status, out, _ = plan("--variants", str(path), "--json", "--min-accuracy", "0.7")
    report = json.loads(out)
    assert (status, report["chosen"]["accuracy"]) == (0, 0.9)
    assert report["left_out"] == {"are below the accuracy floor": 1}
    path.write_text(json.dumps(given | {"measured_on": "rpi-5-8gb"}))
    assert plan("--variants", str(path))[2].startswith("ProfileMismatchError")
    boards = (load_board("rpi-4b"), load_board(this_board_id()))
    times = tuple(PlaceTimes((Cost(ms, spread * ms),), "measured") for ms, spread in ((12.0, 1.5), (3.0, 2.0)))
    for board, device, host in ((this_board_id(), 4.0, 1.0), ("rpi-4b", 1.0, 0.25), (None, 1.0, 1.0)):
        found = variant_factors(VariantFile(measured_on=board), times, boards)
        assert found == (PlaceFactors(device, 1.5), PlaceFactors(host, 2.0))


def test_a_variant_with_times_that_are_none_is_named(plan, tmp_path):
    path = tmp_path / "variants.json"
    entry = {"name": "12 channels", "head_ms": 5.0, "head_p95_ms": 1.0, "tail_ms": 4.0, "payload_bytes": 10}
    path.write_text(json.dumps({"bottlenecks": [entry | {"name": "8 channels", "head_p95_ms": 6.0}, entry]}))
    assert re.match(r"ProfileError: .*p50 5\.0 and p95 1\.0 ms.*'12 channels'", plan("--variants", str(path))[2])


def test_a_variant_without_a_p95_gets_that_of_the_whole_network_on_its_places(plan, profile, tmp_path):
    slow, path, out = tmp_path / "device.json", tmp_path / "variants.json", tmp_path / "plan.json"
    wide = Percentiles(p50=200.0, p90=210.0, p95=300.0, p99=500.0, runs=50)
    slow.write_bytes(dump_profile(msgspec.structs.replace(profile, whole=wide)))
    own = {"head_p95_ms": 21.0, "tail_p95_ms": 4.0}
    entry = {"name": "12 channels", "head_ms": 20.0, "tail_ms": 4.0, "payload_bytes": 10}
    device = ("--device", this_board_id(), "--device-profile", str(slow))
    found = []
    for given in (entry, entry | own):
        path.write_text(json.dumps({"bottlenecks": [given]}))
        status, _, _ = plan("--variants", str(path), "--objective", "p95", "--out", str(out), device=device)
        assert status == 0
        table = parse_plan_table(out.read_bytes())
        found += [(one.device_p95_ms, one.host_p95_ms) for one in table.choices if one.name == "12 channels"]
    host = 4.0 * profile.whole.p95_or_bound / profile.whole.p50
    assert found == [pytest.approx((30.0, host)), (21.0, 4.0)]


def test_work_is_classed_and_quantisation_pairs_are_fused(artefact):
    graph = open_cut_source(artefact.folder).graph
    work = [one for one in work_of(graph, precision="int8") if one is not None]
    assert [one.kind for one in work if one.macs] == ["stem", "depthwise", "pointwise", "matmul"]
    assert sum(one.macs for one in work) == graph.live_macs
    assert all(one.bytes > 0 for one in work)
