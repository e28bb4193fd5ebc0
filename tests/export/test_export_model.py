import dataclasses
import hashlib
import sys

import msgspec
import numpy as np
import onnx
import pytest
import tflite_micro
import torch
from PIL import Image
from torch import nn

from device_profiles.errors import MissingDependencyError
from edge_runtime.artefact import open_artefact, read_raw
from edge_runtime.manifest import Licence, Preprocessing
from edge_runtime.session import open_session
from export.errors import CalibrationError, UnsupportedRouteError
from export.modules import as_model_source
from export.pipeline import export_model
from export.report import findings
from export.request import ExportOptions
from export.samples import DataError
from export.source import SourceError
from export.tflite_model import read_tflite

ROUTES = [
    ("rpi-4b", {}),
    ("rpi-4b", {"precision": "fp16"}),
    ("rpi-4b", {"calibrated": True}),
    ("rpi-4b", {"engine": "litert"}),
    ("rpi-4b", {"engine": "litert", "calibrated": True}),
    ("nucleo-h743zi", {"calibrated": True}),
]


@pytest.mark.parametrize(("board", "options"), ROUTES)
def test_every_artefact_meets_its_own_golden_vectors(exported, board, options):
    artefact = open_artefact(exported(board, **options).folder)
    manifest = artefact.manifest
    session = open_session(artefact)
    assert len(manifest.golden) == 2
    for golden in manifest.golden:
        inputs = [read_raw(artefact, name, spec) for name, spec in zip(golden.inputs, manifest.inputs, strict=True)]
        wanted = [read_raw(artefact, name, spec) for name, spec in zip(golden.expected, manifest.outputs, strict=True)]
        for a, b in zip(session.run(inputs), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_fp32_equals_the_module_to_100_db(exported):
    for engine in ("onnxruntime", "litert"):
        assert exported("rpi-4b", engine=engine).manifest.quality.sqnr_db >= 100.0


def test_one_file_opset_20_ir_10_and_no_path_of_this_machine(exported):
    data = exported("rpi-4b").entry.read_bytes()
    model = onnx.ModelProto.FromString(data)
    assert (model.opset_import[0].version, model.ir_version) == (20, 10)
    assert b".py" not in data
    assert b"site-packages" not in data


def test_int8_litert_has_no_float_tensor_and_takes_pictures_channel_last(exported):
    artefact = exported("rpi-4b", engine="litert", calibrated=True)
    found = read_tflite(artefact.entry.read_bytes(), where="test")
    assert found.is_full_integer
    spec = artefact.manifest.inputs[0]
    assert (spec.name, spec.dtype, spec.shape, spec.layout) == ("picture", "int8", (1, 16, 16, 3), "nhwc")
    assert spec.engine_name == found.inputs[0].name != spec.name


def test_int8_litert_covers_every_output_that_calibration_gave(exported, tiny_calibration):
    """The quantizer's own moving average would clip them; this pins the min-max rule through its private attribute."""
    whole, int8 = exported("rpi-4b", engine="litert"), exported("rpi-4b", engine="litert", calibrated=True)
    session = open_session(whole)
    inputs = np.load(tiny_calibration)["picture"].transpose(0, 2, 3, 1)
    outputs = np.concatenate([session.run([np.ascontiguousarray(one[None])])[0] for one in inputs])
    spec = int8.manifest.outputs[0].quantisation
    low, high = (-128 - spec.zero_point) * spec.scale, (127 - spec.zero_point) * spec.scale
    assert low - spec.scale <= outputs.min()
    assert outputs.max() <= high + spec.scale


def test_a_microcontroller_gives_the_golden_outputs_bit_for_bit(exported):
    artefact = exported("nucleo-h743zi", calibrated=True)
    manifest = artefact.manifest
    device = tflite_micro.runtime.Interpreter.from_bytes(artefact.entry.read_bytes(), arena_size=1 << 20)
    for golden in manifest.golden:
        assert golden.compare == "exact"
        device.set_input(read_raw(artefact, golden.inputs[0], manifest.inputs[0]), 0)
        device.invoke()
        wanted = read_raw(artefact, golden.expected[0], manifest.outputs[0])
        np.testing.assert_array_equal(device.get_output(0), wanted)


def test_int8_without_calibration_is_a_named_error(exported):
    with pytest.raises(CalibrationError, match="--calibration DIR"):
        exported("rpi-4b", precision="int8")


def test_the_manifest_says_where_the_ranges_came_from_and_how_good_it_is(exported, tiny_calibration):
    manifest = exported("rpi-4b", calibrated=True, data=tiny_calibration).manifest
    inputs = np.load(tiny_calibration)["picture"]
    assert (manifest.calibration.source, manifest.calibration.count) == ("inputs.npz", 48)
    assert manifest.calibration.sha256 == hashlib.sha256(inputs.tobytes()).hexdigest()
    assert manifest.quality.metric == "top-1"
    assert manifest.quality.count == 48
    assert manifest.quality.drop == pytest.approx(manifest.quality.reference - manifest.quality.this)
    assert manifest.quality.agreement >= 0.9
    assert {row.what for row in manifest.bench} == {"fp32 latency p50", "int8 latency p50"}


def test_pictures_go_through_the_preprocessing_that_the_device_will_use(exported, tiny_model, tmp_path):
    for label in (0, 3):
        (tmp_path / str(label)).mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(label) / f"{number}.png")
    preprocessing = Preprocessing(resize_short=18, crop=(16, 16), mean=(127.0,) * 3, std=(128.0,) * 3)
    licence = Licence(subject="weights", spdx="MIT", attribution="someone")
    source = dataclasses.replace(
        tiny_model(), preprocessing=preprocessing, labels=("a", "b", "c", "d"), licences=(licence,)
    )
    artefact = exported("rpi-4b", source=source, calibration=tmp_path, data=tmp_path)
    manifest = artefact.manifest
    assert (manifest.calibration.count, manifest.quality.count, manifest.quality.metric) == (8, 8, "top-1")
    assert manifest.preprocessing == preprocessing
    assert manifest.inputs[0].semantic == "image"
    assert manifest.licences == (licence,)
    assert artefact.path(manifest.postprocessing.labels).read_text() == "a\nb\nc\nd\n"


def test_class_ids_that_the_network_does_not_have_are_no_accuracy_of_nought(exported, tiny_calibration, tmp_path):
    inputs = np.load(tiny_calibration)
    np.savez(tmp_path / "fine.npz", picture=inputs["picture"], labels=inputs["labels"] + 3)
    with pytest.raises(DataError, match=r"class ids of 0 to 9.*found 3 to 12 in .*fine\.npz.*--label-key"):
        exported("rpi-4b", calibrated=True, data=tmp_path / "fine.npz")
    np.savez(tmp_path / "fine.npz", picture=inputs["picture"], labels=inputs["labels"] + 3, coarse=inputs["labels"])
    chosen = exported("rpi-4b", calibrated=True, data=tmp_path / "fine.npz", label_key="coarse").manifest.quality
    assert chosen.this == exported("rpi-4b", calibrated=True, data=tiny_calibration).manifest.quality.this


def test_an_onnx_file_becomes_int8_and_a_quantised_one_stays_what_it_is(exported, tiny_calibration):
    fp32 = exported("rpi-4b").entry
    int8 = exported("rpi-4b", source=str(fp32), calibrated=True)
    assert int8.manifest.quality.sqnr_db > 20.0
    again = exported("rpi-4b", source=str(int8.entry), precision="int8")
    assert again.manifest.calibration is None
    with pytest.raises(UnsupportedRouteError, match="quantised already"):
        exported("rpi-4b", source=str(int8.entry), precision="fp16")


def test_a_float_tflite_file_is_quantised_and_an_int8_one_goes_to_a_microcontroller(
    exported, tiny_calibration, tmp_path
):
    fp32 = exported("rpi-4b", engine="litert").entry
    int8 = exported("rpi-4b", source=str(fp32), calibration=_channel_last(tiny_calibration, tmp_path))
    assert int8.manifest.precision == "int8"
    mcu = exported("nucleo-h743zi", source=str(int8.entry))
    assert mcu.entry.read_bytes() == int8.entry.read_bytes()
    assert mcu.manifest.engine.name == "tflite-micro"
    with pytest.raises(CalibrationError):
        exported("nucleo-h743zi", source=str(fp32))


def test_int8_under_the_bar_names_the_worst_five_layers(exported, tiny_model):
    source = tiny_model()
    with torch.no_grad():
        source.module[0].weight[0] *= 4000.0  # one channel that makes the steps of all others coarse
        source.module[2] = nn.Identity()
    quality = exported("rpi-4b", source=source, calibrated=True).manifest.quality
    assert quality.sqnr_db < 25.0
    assert len(quality.worst_layers) == 5
    assert [db for _, db in quality.worst_layers] == sorted(db for _, db in quality.worst_layers)


def test_findings_say_when_int8_is_slower(exported):
    manifest = exported("rpi-4b", calibrated=True).manifest
    rows = tuple(
        msgspec.structs.replace(row, value=2.0 if row.what.startswith("int8") else 1.0) for row in manifest.bench
    )
    slow = findings(msgspec.structs.replace(manifest, bench=rows))
    assert any("int8 is slower than fp32" in sentence for sentence in slow)


@pytest.mark.parametrize("value", [3, (nn.ReLU(),), (nn.ReLU(), "x"), (nn.ReLU(), torch.zeros(1), "no")])
def test_a_function_that_returns_something_else_is_told_what_to_return(value):
    with pytest.raises(SourceError, match="Wanted"):
        as_model_source(value, where="a:b")


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch, exported, tiny_model, export_cache):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    monkeypatch.delitem(sys.modules, "export.to_litert", raising=False)
    with pytest.raises(MissingDependencyError, match=r"headtail\[export-litert\]"):
        export_model(tiny_model(99), "rpi-4b", ExportOptions(engine="litert"), cache=export_cache)


def _channel_last(path, folder):
    with np.load(path) as arrays:
        np.savez(folder / "nhwc.npz", x=arrays["picture"].transpose(0, 2, 3, 1))
    return folder / "nhwc.npz"
