"""`headtail profile` as a newcomer types it, and the page that it writes."""

import json
import math
import re

import pytest

from device_profiles.measurement import EngineSettings, KernelTime, Percentiles, Profile, Slice, load_profile
from orchestrator.cli import run
from orchestrator.profile_report import render, roofline


def kernel(name, kind, ms, macs, size):
    times = Percentiles(p50=ms, p90=ms, p99=ms, runs=9)
    return KernelTime(name=name, nodes=(name,), kind=kind, macs=macs, bytes=size, latency=times, op="Conv")


def make_profile(**changes):
    values = {
        "board": "rpi-4b",
        "model": "<b>net</b>",
        "model_sha256": "0" * 64,
        "precision": "fp32",
        "engine": EngineSettings(name="onnxruntime", version="1"),
        "created": "2026-11-23T10:00:00Z",
        "whole": Percentiles(p50=4.0, p90=4.5, p99=5.0, runs=9),
    }
    return Profile(**{**values, **changes})


def test_profile_prints_a_table_and_writes_page_and_json(network, tmp_path, capsys):
    page, out = tmp_path / "p.html", tmp_path / "p.json"
    assert run(["profile", str(network.whole.folder), "--html", str(page), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Kernels that take most time" in text
    assert "unaccounted" in text
    assert load_profile(out).model == "tiny"
    html = page.read_text()
    assert html.count("data:image/png;base64,") >= 2
    assert "unknown: no meter" in html or "samples" in html


def test_profile_prints_json(network, capsys):
    assert run(["profile", str(network.whole.folder), "--json", "--power", "idle=1,active=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["energy"]["origin"] == "stated"
    assert math.isclose(sum(len(one["nodes"]) for one in found["kernels"]), 2)


def test_an_unknown_place_is_a_named_error(network, capsys):
    assert run(["profile", str(network.whole.folder), "--on", "moon"]) == 1
    assert "PlaceError" in capsys.readouterr().err


def test_a_noisy_run_is_marked_on_the_page():
    html = render(make_profile(status="noisy", remarks=("wall time is 2.00 times CPU time",)))
    assert "is not used for planning" in html
    assert "wall time is 2.00 times CPU time" in html


def test_a_page_without_kernels_has_no_plots_and_escapes_names():
    html = render(make_profile())
    assert "data:image" not in html
    assert "&lt;b&gt;net" in html


def test_a_page_shows_the_sustained_run():
    minutes = tuple(
        Slice(begin_s=60.0 * index, seconds=60.0, p50=4.0 + index, p90=5.0 + index, temperature_c=60.0)
        for index in range(3)
    )
    html = render(make_profile(sustained=minutes))
    assert html.count("data:image/png;base64,") == 1
    assert re.search(r"minute 2.*p50 6.000", html, re.DOTALL)


def test_the_roof_is_the_best_of_the_run():
    kernels = [kernel("a", "conv", 1.0, 10_000_000, 1_000_000), kernel("b", "conv", 1.0, 1_000_000, 4_000_000)]
    points, roof = roofline(kernels)
    assert (roof.macs_per_s, roof.bytes_per_s) == (1e10, 4e9)
    assert all(point.rate <= roof.limit(point.intensity) * (1 + 1e-9) for point in points)


@pytest.mark.parametrize("macs", [0, 5])
def test_kernels_without_work_have_no_roofline(macs):
    points, roof = roofline([kernel("a", "other", 1.0, macs, 0)])
    assert (points, roof) == ([], None)
