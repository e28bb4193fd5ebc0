import pytest

from device_profiles import load_board
from export.evaluate import evaluate_pair
from export.litert_pair import write_microcontroller_pair
from export.trained_pair import PairFormError, TrainedPairOptions
from orchestrator.cli import run

BOARD = "nucleo-h743zi"


@pytest.fixture(scope="module")
def options(colour, tmp_path_factory):
    return TrainedPairOptions(
        out=tmp_path_factory.mktemp("mcu"),
        name="colours",
        source_sha256="0" * 64,
        preprocessing=colour.PREPROCESSING,
        labels=colour.LABELS,
        head_target=BOARD,
    )


@pytest.fixture(scope="module")
def pair(trained, picture_set, options):
    return write_microcontroller_pair(trained["bottlefit"], picture_set(96, seed=2), load_board(BOARD), options)


def test_a_microcontroller_head_is_a_c_project_whose_integers_the_tail_reads(pair, pairs, picture_set):
    files = pair.head.manifest.files_by_path
    assert "model.tflite" in files
    assert any(name.endswith(".c") for name in files)
    assert pair.head.manifest.engine.name == "tflite-micro"
    assert pair.head.manifest.outputs[0].layout == "nhwc"
    assert pair.equality.equal == pair.equality.count > 0
    data = picture_set(48, seed=22)
    way = evaluate_pair(pair.head, pair.tail, data, name="mcu")
    other = evaluate_pair(pairs["bottlefit"].head, pairs["bottlefit"].tail, data, name="onnx")
    same = way.logits.argmax(1) == other.logits.argmax(1)
    assert same.mean() > 0.9
    assert way.sizes.mean() == pytest.approx(other.sizes.mean(), rel=0.25)
    assert way.cost.macs > 0


def test_verify_accepts_head_and_tail(pair):
    for artefact in (pair.head, pair.tail):
        assert run(["verify", str(artefact.folder)]) == 0


@pytest.mark.mcu
def test_the_heads_c_gives_the_same_integers_on_a_simulated_board(pair):
    assert run(["verify", str(pair.head.folder), "--on", "qemu"]) == 0


def test_a_gdn_head_is_refused_by_name(trained, picture_set, options):
    with pytest.raises(PairFormError, match="GDN"):
        write_microcontroller_pair(trained["entropic"], picture_set(24), load_board(BOARD), options)
