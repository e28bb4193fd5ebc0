"""`headtail export` for a board gives an artefact with generated C, and `verify --on qemu` proves it."""

import json
import shutil
import subprocess

import pytest

from edge_runtime.artefact import open_artefact
from export.cache import Cache, open_cache
from export.mcu.errors import UnsupportedOpError
from export.mcu.places import QemuPlace, qemu
from export.mcu.qemu import prove
from export.pipeline import export_model
from export.request import ExportOptions, McuChoices
from orchestrator.cli import run


@pytest.fixture(scope="session")
def board_artefact(tflite_builder, tmp_path_factory, monkeypatch_session):
    folder = tmp_path_factory.mktemp("artefact")
    monkeypatch_session.setenv("HEADTAIL_CACHE", str(folder / "cache"))
    net = tflite_builder(4)
    source = net.activation((1, 12, 12, 3), 0.04, -5)
    tip = net.depthwise(net.conv(source, 8, (3, 3), (2, 2)))
    path = folder / "tiny.tflite"
    path.write_bytes(net.finish([source], [net.unary("SOFTMAX", net.dense(net.mean(tip, [1, 2]), 4))]))
    options = ExportOptions(mcu=McuChoices(input_mode="pulled", schedule="stream"))
    return export_model(str(path), "stm32f746g-disco", options, out=folder / "out", cache=open_cache())


@pytest.fixture(scope="session")
def monkeypatch_session():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.mcu
def test_the_artefact_holds_the_int8_file_and_its_c(board_artefact):
    listed = board_artefact.manifest.files_by_path
    assert {"model.tflite", "src/ht_tiny.c", "src/ht_tiny.h", "Makefile", "report.json", "memory.svg"} <= set(listed)
    assert board_artefact.manifest.entry == "model.tflite"
    assert b"ht_pull_row" in board_artefact.path("src/ht_tiny.h").read_bytes()


@pytest.mark.mcu
def test_verify_on_qemu_compares_every_golden_byte(board_artefact):
    report = qemu().verify(board_artefact)
    assert report.passed
    assert len(report.checks) == 5
    assert "mps2-an386" in report.place
    assert QemuPlace("mps3-an547").verify(board_artefact).passed


@pytest.mark.mcu
def test_fit_knows_what_the_export_planned(board_artefact, capsys):
    assert run(["fit", str(board_artefact.folder), "--board", "stm32f746g-disco", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = {one["part"]: one for one in found["fit"]["parts"]}
    report = json.loads(board_artefact.path("report.json").read_bytes())
    assert found["verdict"] == "fits"
    assert parts["memory"]["need_bytes"] == report["arena_bytes"] + 1024
    run_there = prove(board_artefact.folder, machine="mps2-an386")
    assert run_there.flash_bytes <= parts["flash"]["need_bytes"]
    assert run_there.ram_bytes <= parts["memory"]["need_bytes"]


@pytest.mark.mcu
def test_building_leaves_the_artefact_intact_whatever_its_folder_is_called(board_artefact, tmp_path):
    folder = tmp_path / "à la carte" / "my model"
    shutil.copytree(board_artefact.folder, folder)
    subprocess.run(["make", "-s", "-C", str(folder), "qemu"], check=True, capture_output=True)
    assert open_artefact(folder).id == board_artefact.id
    assert {path.name for path in folder.parent.iterdir()} == {"my model", "my_model.build"}


def test_an_operator_without_c_is_named_before_anything_runs(tflite_builder, tmp_path):
    net = tflite_builder()
    source = net.activation((1, 8), 0.05, 4)
    path = tmp_path / "tanh.tflite"
    path.write_bytes(net.finish([source], [net.node("TANH", [source], [net.activation((1, 8), 1 / 128, 0)])]))
    with pytest.raises(UnsupportedOpError, match=r"node 0 \(TANH\): no C kernel"):
        export_model(str(path), "nucleo-f446re", out=tmp_path / "out", cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "out").exists()


def test_uint8_activations_are_refused_by_name_and_not_by_an_engine(tflite_builder, tmp_path):
    net = tflite_builder()
    source = net.activation((1, 8), 0.05, 128, dtype="uint8")
    path = tmp_path / "old.tflite"
    path.write_bytes(
        net.finish([source], [net.node("RELU", [source], [net.activation((1, 8), 0.05, 128, dtype="uint8")])])
    )
    with pytest.raises(UnsupportedOpError, match=r"is uint8\. Accepted: int8 activations"):
        export_model(str(path), "nucleo-f446re", out=tmp_path / "out", cache=Cache(tmp_path / "cache"))


def test_a_quantised_file_stays_int8_where_nothing_else_is_asked_for(tflite_builder, tmp_path):
    net = tflite_builder()
    source = net.activation((1, 6, 6, 3), 0.05, -3)
    path = tmp_path / "ready.tflite"
    path.write_bytes(net.finish([source], [net.conv(source, 4)]))
    made = export_model(str(path), "rpi-4b", out=tmp_path / "out", cache=Cache(None))
    assert (made.manifest.precision, made.manifest.engine.name) == ("int8", "litert")


@pytest.mark.mcu
def test_float_edges_around_an_int8_network_need_no_calibration(tflite_builder, tmp_path):
    net = tflite_builder()
    real = net.activation((1, 6, 6, 3), dtype="float32")
    source = net.node("QUANTIZE", [real], [net.activation((1, 6, 6, 3), 0.05, -3)])
    out = net.dense(net.conv(source, 4), 3)
    result = net.node("DEQUANTIZE", [out], [net.activation((1, 3), dtype="float32")])
    path = tmp_path / "edges.tflite"
    path.write_bytes(net.finish([real], [result]))
    made = export_model(str(path), "nucleo-f446re", out=tmp_path / "out", cache=Cache(tmp_path / "cache"))
    assert made.entry.read_bytes() == path.read_bytes()
    assert qemu().verify(made).passed
