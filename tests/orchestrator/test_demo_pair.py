import json
import shutil

import msgspec
import pytest

from edge_runtime.artefact import open_artefact
from edge_runtime.manifest import Quality
from orchestrator.cli import run
from orchestrator.demo.pair import STREAM, ZOO, PairDemo, PairDemoError, remark_of, run_pair


@pytest.mark.parametrize("pair", [ZOO, STREAM], ids=lambda one: one.name)
def test_a_shipped_pair_is_small_licensed_and_says_how_it_was_made(pair):
    files = [one for one in pair.parent.rglob("*") if one.is_file()]
    assert sum(one.stat().st_size for one in files) < 15_000_000
    said = json.loads((pair / "zoo.json").read_text())
    assert said["command"].startswith("headtail split grocery:lite0 --method")
    assert open_artefact(pair / "head").key == said["cut_id"]
    assert said["cut_id"] in open_artefact(pair / "tail").manifest.cut.accepts
    assert "MIT" in (pair / "LICENSES.md").read_text()
    assert {one.spdx for one in open_artefact(pair / "head").manifest.licences} == {"Apache-2.0", "MIT"}


def test_the_shipped_stream_sends_fewer_bytes_with_fewer_layers(tmp_path, capsys):
    sizes = []
    for layers in ("1", "0"):
        words = ["demo", "--pair", str(STREAM / "head"), str(STREAM / "tail"), "--link", "none", "--layers", layers]
        assert run([*words, "--out", str(tmp_path / layers), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["pair"]
        assert found["right"] > found["labelled"] * 0.7
        sizes.append(found["bytes_largest"])
    assert 200 < sizes[0] < 0.6 * sizes[1] < 800


def test_the_shipped_pair_answers_over_mqtt(tmp_path, capsys):
    words = ["demo", "--pair", str(ZOO / "head"), str(ZOO / "tail"), "--link", "none", "--out", str(tmp_path), "--json"]
    assert run(words) == 0
    found = json.loads(capsys.readouterr().out)["pair"]
    assert found["pictures"] == found["labelled"] > 10
    assert found["right"] > found["labelled"] / 2
    assert 100 < found["bytes_mean"] <= found["bytes_largest"] < 3000


def test_a_missing_pair_or_no_pictures_is_a_named_error(tmp_path):
    with pytest.raises(PairDemoError, match="found nothing"):
        run_pair(PairDemo(head=tmp_path / "head"), tmp_path, print)
    with pytest.raises(PairDemoError, match="Wanted pictures"):
        run_pair(PairDemo(pictures=tmp_path), tmp_path, print)
    shutil.copytree(ZOO / "head", tmp_path / "head")
    with pytest.raises(PairDemoError, match="the tail that accepts it"):
        run_pair(PairDemo(tail=tmp_path / "head"), tmp_path, print)


def test_the_demo_says_when_accuracy_is_not_the_aim():
    manifest = open_artefact(ZOO / "head").manifest
    quality = Quality(
        metric="top-1",
        reference=0.9,
        this=0.5,
        drop=0.4,
        agreement=None,
        sqnr_db=None,
        data="d",
        data_sha256="0" * 64,
        count=9,
    )
    assert "not the aim" in remark_of(msgspec.structs.replace(manifest, quality=quality))
    close = msgspec.structs.replace(quality, this=0.89, drop=0.01)
    assert "not the aim" not in remark_of(msgspec.structs.replace(manifest, quality=close))
    assert "does not say" in remark_of(msgspec.structs.replace(manifest, quality=None))
