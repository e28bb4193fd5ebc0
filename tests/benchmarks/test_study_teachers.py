"""The committed teacher, MobileNetV2 out of folded weights, and the rows of the study's teachers."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from benchmarks.rows import RESULTS
from benchmarks.split.mobilenet_weights import folded_network, measure
from benchmarks.split.nets import MobileNetV2
from benchmarks.split.study import prepare
from benchmarks.split.study_curves import read_note
from benchmarks.split.study_nets import raw_job
from benchmarks.split.study_plan import JOBS, PROTOCOLS, layer_of, load_teacher, teacher_id
from benchmarks.split.study_rows import teacher_rows
from split.training_data import PictureSet


def test_measured_batch_norms_keep_what_the_folded_network_computes_and_hold_its_statistics():
    torch.manual_seed(0)
    weights = [one.weight.detach() for one in MobileNetV2().modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    network = folded_network([(one, 0.1 * torch.randn(len(one))) for one in weights])
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        measure(network, [x[:4], x[4:]])
        torch.testing.assert_close(network(x), before, rtol=1e-3, atol=1e-4)
        first = network.features[0][0](x)
    norm = network.features[0][1]
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, first.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_mobilenet_has_the_published_size_and_cuts_at_the_stated_strides():
    assert sum(one.numel() for one in MobileNetV2().parameters()) == 3_504_872
    network, protocol = MobileNetV2(43).eval(), PROTOCOLS["m"]
    with torch.no_grad():
        for layer, stride in ((protocol.layer, 4), (protocol.coarse_layer, 8)):
            end = int(layer.removeprefix("features."))
            assert network.features[: end + 1](torch.zeros(1, 3, 160, 160)).shape[2:] == (160 // stride, 160 // stride)
            assert network.features[: end + 2](torch.zeros(1, 3, 160, 160)).shape[2] == 160 // (2 * stride)


def test_jobs_of_mobilenet_are_of_one_seed_and_cut_at_its_own_layers():
    jobs = [job for job in JOBS.values() if job.protocol in ("m", "m224")]
    assert {job.seed for job in jobs} == {0}
    fronts = [job for job in jobs if job.series == "front"]
    assert {job.name for job in fronts} == {f"m-front-beta{beta}-s0" for beta in ("1e-05", "0.0001", "0.001")}
    assert {job.options["front"] for job in fronts} == {PROTOCOLS["m"].coarse_layer}
    layers = [name for name, _ in PROTOCOLS["m"].network().named_modules()]
    deeper = {
        (protocol, series): "features.13" for protocol in ("m", "m224") for series in ("deep_klt", "deep_klt_trained")
    }
    found = {(job.protocol, job.series): layer_of(job) for job in jobs if job.method == "klt"}
    assert found == {("m", "klt"): PROTOCOLS["m"].coarse_layer} | deeper
    assert all(layer_of(job) in layers for job in jobs)


def test_a_teacher_has_a_row_when_its_note_is_there(tmp_path):
    assert list(teacher_rows(tmp_path)) == []
    (tmp_path / "m224-teacher.json").write_text('{"val":0.5,"test":0.25,"epochs":30,"device":"cpu","torch":"2"}')
    (row,) = teacher_rows(tmp_path)
    assert (row["id"], row["value"]) == ("teacher.mobilenet_v2.224", 25.0)
    assert "enlarged" in row["what"]


def test_the_committed_teacher_is_the_one_behind_the_points_and_computes_what_its_published_form_does(
    tmp_path, monkeypatch
):
    protocol = PROTOCOLS["b"]
    monkeypatch.delenv(protocol.weights, raising=False)
    for name in ("train", "val", "test"):
        (tmp_path / f"b-{name}.npz").touch()  # nothing is decoded again
    prepare(protocol, tmp_path, tmp_path, "cpu")
    network = load_teacher(protocol, tmp_path)
    points = RESULTS / "split_points" / "b-deep-beta0.001-s0.npz"
    assert teacher_id(network) == read_note(points)["teacher"]

    published = EfficientNet.from_name("efficientnet-lite0")
    published._fc = nn.Linear(published._fc.in_features, protocol.classes)
    published.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), published.eval()(x))
    assert sum(isinstance(one, nn.ZeroPad2d) for one in network.modules()) == 5  # where the sides differ

    pictures = torch.randint(256, (3, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = PictureSet(pictures, torch.zeros(3, dtype=torch.int64), tuple(map(str, range(43))))
    arrays, note = raw_job(JOBS["b-raw-q100"], tmp_path, {"val": data, "test": data}, "cpu")
    assert arrays["sizes"].tolist() == [76_832] * 3
    assert np.unpackbits(arrays["plain"])[:3].mean() == pytest.approx(note["test"], abs=1e-4)
