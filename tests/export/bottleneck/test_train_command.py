import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_runtime.artefact import open_artefact
from export.bottleneck_run import BottleneckRunError, _held_out
from export.commands.train import remark_of
from orchestrator.cli import run
from split.distill import StageSteps
from split.training_data import PictureSet

NETWORK = "colour_network:network"


@pytest.fixture
def here(colour, tmp_path, monkeypatch):
    """An empty folder as the current one; the module colour_network is loaded already."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(colour, here):
    """A folder of pictures by class name."""
    images, labels = colour.colours(60)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = here / "pictures" / colour.LABELS[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return here / "pictures"


def _split(
    *more, method="bottlefit", layer="layer3", data="colour_network:pictures", out="pair", model=NETWORK, batch=12
):
    words = ["split", model, "--method", method, "--layer", layer, "--data", str(data), "--out", out]
    words += ["--batch", str(batch)]
    return run([*words, "--epochs", "2,1", *more])


def test_training_ends_in_a_pair_a_report_and_a_curve(folder, here, capsys):
    assert _split("--json", data=folder) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equal"]["equal"] == report["equal"]["count"] > 0
    head, tail = open_artefact("pair/head"), open_artefact("pair/tail")
    assert report["cut_id"] == head.key
    assert tail.manifest.cut.accepts == (head.key,)
    assert head.manifest.quality.count == report["evaluation"]["pictures"] == 12
    assert head.manifest.licences[0].spdx == "CC0-1.0"
    for name in ("report.json", "report.html", "curve.svg", "curve.png", "break-even.svg", "break-even.png"):
        assert (here / "pair" / name).stat().st_size > 500, name
    kinds = {way["kind"] for way in report["evaluation"]["ways"]}
    assert kinds == {"whole", "raw", "jpeg", "webp", "pair"}
    assert (here / "pair/run/metrics.jsonl").read_text().count("\n") > 1
    steps = report["training"].values()
    assert steps
    assert all(one["steps"] == one["planned"] for one in steps)

    assert run(["eval", "pair", "--data", str(folder), "--json", "--out", "measured", "--no-codecs"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["pictures"] == 60
    assert {way["kind"] for way in again["ways"]} == {"whole", "raw", "pair"}
    assert (here / "measured/report.html").is_file()
    assert run(["eval", "pair/head", "--data", str(folder)]) == 1
    assert "EvaluationError: Wanted a tail that accepts" in capsys.readouterr().err


def test_a_training_that_a_budget_ended_says_that_accuracy_is_not_the_aim():
    joint, fixed = StageSteps("joint", 8, 96), StageSteps("fixed", 24, 24)
    assert remark_of([fixed]) == ""
    assert re.search(r"8 of 96 steps of 'joint'.* Accuracy is not the aim.*--method klt", remark_of([joint, fixed]))
    assert re.search("8 of 96 .*worked before", remark_of([joint, fixed], fitted=True))


@pytest.mark.parametrize(("target", "rates"), [("this", 3), ("litert", 1), ("nucleo-h743zi", 1)])
def test_a_pair_without_training_answers_as_the_network_does(target, rates, folder, here, capsys):
    words = ["split", NETWORK, "--method", "klt", "--layer", "layer2", "--data", str(folder), "--out", "pair"]
    engine = ["--head-engine", "litert"] if target == "litert" else ["--target", target]
    words += ["--set", "step=1", "--set", f"rates={rates}", "--json", "--no-codecs", *engine]
    assert run([*words, "--dry-run"]) == 0
    assert set(json.loads(capsys.readouterr().out)["seconds"]) == {"fit"}
    assert run(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["training"] == {}
    assert report["equal"]["equal"] == report["equal"]["count"] > 0
    ways = {way["kind"]: way for way in report["evaluation"]["ways"]}
    assert ways["pair"]["accuracy"] > ways["whole"]["accuracy"] - 0.1
    assert ways["pair"]["bytes_mean"] < ways["raw"]["bytes_mean"] / 4
    assert len([one for one in report["evaluation"]["ways"] if one["kind"] == "pair"]) == rates
    assert run(["verify", "pair/head"]) == 0
    capsys.readouterr()
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["cut_id"] == report["cut_id"]  # computed again, and the same


def test_a_second_start_continues_and_gives_the_same_head_at_another_size(here, capsys):
    words = ("--no-codecs", "--size", "48")
    assert _split(*words, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert {open_artefact(f"pair/{one}").manifest.inputs[0].shape for one in ("head", "whole")} == {(1, 3, 48, 48)}
    assert _split(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cut_id"] == first["cut_id"]
    assert _split(*words, "--seed", "1") == 1
    assert "CheckpointError" in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "front"), [("onnxruntime", ""), ("litert", "layer1")])
def test_an_exit_and_a_refined_tail_are_written_run_and_measured(engine, front, folder, here, capsys):
    (folder / "red" / "broken.png").write_bytes(b"not a picture")
    words = ["--json", "--no-codecs", "--exit", "--refine", "2", "--head-engine", engine, "--set", f"front={front}"]
    assert _split(*words, layer="layer2", data=folder) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["equal"]["equal"] == report["equal"]["count"] > 0
    assert report["evaluation"]["skipped_names"] == ["red/broken.png"]
    assert (here / "pair/run/skipped.txt").read_text() == "red/broken.png\n"
    head = open_artefact("pair/head")
    assert (head.manifest.engine.name, open_artefact("pair/tail").manifest.engine.name) == (engine, engine)
    assert [one.name for one in head.manifest.outputs] == ["latent", "exit"]
    assert [one.name for one in head.manifest.cut.tensors] == ["latent"]
    policy = head.manifest.early_exit
    assert (policy.output, policy.temperature > 0) == ("exit", True)
    assert len(head.manifest.golden[0].expected) == 2
    assert run(["verify", "pair/head"]) == 0
    ways = {way["kind"]: way for way in report["evaluation"]["ways"]}
    assert ways["exit"]["sent"] <= 1
    assert ways["exit"]["bytes_mean"] == pytest.approx(ways["pair"]["bytes_mean"] * ways["exit"]["sent"], rel=0.2)
    capsys.readouterr()
    assert run(["eval", "pair", "--data", str(folder), "--no-codecs"]) == 0
    said = capsys.readouterr().out
    assert "are answered on the device and send nothing" in said
    assert "1 damaged pictures were skipped: red/broken.png" in said


def test_a_dry_run_says_what_it_takes_and_writes_nothing(here, capsys):
    assert _split("--dry-run", "--json", "--time-budget", "1h30m") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total_s"] > 0
    assert found["time_budget_s"] == 5400
    assert not (here / "pair").exists()
    assert _split("--dry-run", "--json", "--exit", "--refine", "4", "--time-budget", "1s", layer="layer2") == 0
    more = json.loads(capsys.readouterr().out)
    assert set(more["seconds"]) - set(found["seconds"]) == {"refine", "exit"}
    assert all(value > 0 for value in more["seconds"].values())
    assert more["total_s"] == pytest.approx(sum(more["seconds"].values()))
    assert more["ends_after_s"] > more["seconds"]["refine"] + more["seconds"]["exit"]
    assert not (here / "pair").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "layer9"}, "LayerError: .*layer1, layer2"),
        ({"layer": "fc"}, "LayerError: .*cannot follow"),
        ({"method": "magic"}, "MethodError: .*bottlefit, entropic"),
        ({"model": "colour_network:sequences", "layer": "0"}, "NetworkError: .*picture"),
        ({"model": "nowhere:network"}, "SourceError: .*nowhere"),
        ({"data": "missing"}, "TrainingDataError: .*missing"),
        ({"batch": 1000}, "TrainingError: .*batch of 1000"),
        ({"more": ("--beta", "1")}, "MethodError: .*beta"),
        ({"more": ("--time-budget", "soon")}, "TrainingUsageError: .*soon"),
        (
            {"more": ("--set", "front=layer9"), "data": "missing"},
            "LayerError: .*first layers.*'layer9'.*layer1, layer2",
        ),
        ({"more": ("--set", "front=layer1"), "method": "positions"}, "BottleneckError: .*Leave front out"),
        ({"more": ("--set", "front=layer1"), "method": "entropic"}, "MethodError: .*'front'"),
        ({"more": ("--set", "width")}, "TrainingUsageError: .*name=value"),
        ({"more": ("--size", "-5")}, "BottleneckRunError: .*--size -5"),
        ({"more": ("--at", "3", "--codec", "rans")}, "TrainingUsageError: .*found --at, --codec.*Leave these out"),
        ({"more": ("--refine", "-2")}, "BottleneckRunError: .*--refine -2"),
        ({"more": ("--device", "foo")}, "TrainingError: .*--device foo"),
        ({"more": ("--device", "cuda:999")}, "TrainingError: .*'cuda:999'.*--device cpu"),
        ({"more": ("--val-data", "colour_network:pictures")}, "BottleneckRunError: .*--exit or --refine"),
        ({"more": ("--exit", "--target", "nucleo-f446re")}, "BottleneckRunError: .*microcontroller"),
        ({"more": ("--head-engine", "onnxruntime", "--target", "nucleo-f446re")}, "BottleneckRunError: .*Leave it out"),
        ({"more": ("--tail-engine", "litert", "--tail-precision", "fp16")}, "BottleneckRunError: .*fp32 or int8"),
    ],
)
def test_wrong_words_are_named_errors(here, capsys, change, message):
    rest = {name: value for name, value in change.items() if name != "more"}
    assert _split(*change.get("more", ()), **rest) == 1
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_labels_out_of_range_one_class_and_other_folders_are_named_errors(folder, here, colour, capsys):
    images, labels = colour.colours(24)
    pixels = images.transpose(0, 2, 3, 1)
    np.savez(here / "high.npz", images=pixels, labels=labels + 1)
    np.savez(here / "one.npz", images=pixels, labels=np.zeros(24, int))
    assert _split(data=here / "high.npz") == 1
    assert "TrainingDataError: Wanted class ids in 0 to 2" in capsys.readouterr().err
    assert _split(data=here / "one.npz") == 1
    assert "at least 2 classes" in capsys.readouterr().err
    shutil.move(folder / "red", folder / "violet")
    assert _split(data=folder) == 1
    assert "violet" in capsys.readouterr().err


def test_corrupt_pictures_are_skipped_with_a_list_or_refused_when_strict(folder, here, caplog, capsys):
    (folder / "red" / "broken.png").write_bytes(b"not a picture")
    assert _split("--dry-run", data=folder) == 0
    assert "red/broken.png" in caplog.text
    assert "1 of 61" in caplog.text
    capsys.readouterr()
    assert _split("--strict", data=folder) == 1
    assert "red/broken.png" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_named_error(here, capsys):
    (here / "taken").write_bytes(b"")
    assert _split(out="taken") == 1
    assert "CheckpointError: Wanted to make the folder taken/run" in capsys.readouterr().err


def test_a_full_disk_at_a_checkpoint_is_a_named_error(here, colour):
    limit = 20_000  # bytes of one file: less than a checkpoint
    code = (
        "import resource, runpy, sys; sys.path.insert(0, sys.argv.pop(1));"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from orchestrator.cli import main; main()"
    )
    words = ["split", NETWORK, "--method", "bottlefit", "--layer", "layer3", "--data", "colour_network:pictures"]
    words += ["--epochs", "1,1", "--batch", "12", "--out", "pair"]
    folder = str(Path(colour.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "CheckpointError: Wanted to write" in done.stderr
    assert not list((here / "pair" / "run").glob("*.tmp"))


def test_too_few_pictures_to_measure_on_are_refused_before_training(tmp_path):
    data = PictureSet.of_arrays(np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2, classes=("a", "b"))
    with pytest.raises(BottleneckRunError, match="--test-data"):
        _held_out(data, "pictures")
