"""MobileNetV2 out of folded weights, and the rows of the study's teachers."""

import torch
from torch import nn

from benchmarks.split.mobilenet_weights import folded_network, measure
from benchmarks.split.nets import MobileNetV2
from benchmarks.split.study_plan import JOBS, PROTOCOLS
from benchmarks.split.study_rows import teacher_rows


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


def test_jobs_of_mobilenet_are_one_seed_of_the_front_curve():
    jobs = [job for job in JOBS.values() if job.protocol == "m"]
    assert {job.name for job in jobs} == {f"m-front-beta{beta}-s0" for beta in ("1e-05", "0.0001", "0.001")}
    assert {job.options["front"] for job in jobs} == {PROTOCOLS["m"].coarse_layer}


def test_a_teacher_has_a_row_when_its_note_is_there(tmp_path):
    assert list(teacher_rows(tmp_path)) == []
    (tmp_path / "m224-teacher.json").write_text('{"val":0.5,"test":0.25,"epochs":30,"device":"cpu","torch":"2"}')
    (row,) = teacher_rows(tmp_path)
    assert (row["id"], row["value"]) == ("teacher.mobilenet_v2.224", 25.0)
    assert "enlarged" in row["what"]
