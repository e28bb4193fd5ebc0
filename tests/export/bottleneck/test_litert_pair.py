from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from device_profiles import load_board
from edge_runtime.session import open_session
from export.cut_check import open_tflite_runner
from export.cut_litert import load_tflite
from export.errors import ConversionError
from export.evaluate import evaluate_pair
from export.joined import count_equal
from export.litert_head import head_to_litert
from export.litert_pair import write_litert_pair
from export.mcu.errors import UnsupportedOpError
from export.pair_runner import PairRunner
from export.tflite_join import join_tflite
from export.trained_manifest import TrainedPairOptions
from export.trained_pair import PairFormError, augmentation_of, calibration_pictures
from orchestrator.cli import run
from split.distill import fit
from split.inject import inject, trace_network
from split.latents import IntegerHead, fit_grid, input_batches
from split.methods import find_method, options_from

BOARD = "nucleo-h743zi"


@pytest.fixture(scope="module")
def options(colour, tmp_path_factory):
    return TrainedPairOptions(
        out=tmp_path_factory.mktemp("litert"),
        name="colours",
        source_sha256="0" * 64,
        preprocessing=colour.PREPROCESSING,
        labels=colour.LABELS,
        tail_engine="litert",
    )


@pytest.fixture(scope="module")
def mcu(trained, picture_set, options):
    """A C project with a LiteRT tail."""
    there = replace(options, out=options.out / "mcu", head_target=BOARD)
    return write_litert_pair(trained["bottlefit"], picture_set(96, seed=2), there, board=load_board(BOARD))


@pytest.fixture(scope="module")
def gdn(trained, picture_set, options):
    """A head with GDN for LiteRT, with an int8 tail."""
    there = replace(options, out=options.out / "gdn", tail_precision="int8")
    return write_litert_pair(trained["entropic"], picture_set(96, seed=2), there)


def _inputs(pair, data):
    runner = PairRunner(pair.head, pair.tail)
    return [runner.input_of(one.numpy().transpose(1, 2, 0)) for one in data.images]


def test_a_microcontroller_head_is_a_c_project_whose_integers_the_tail_reads(mcu, pairs, picture_set):
    files = mcu.head.manifest.files_by_path
    assert "model.tflite" in files
    assert any(name.endswith(".c") for name in files)
    assert mcu.head.manifest.engine.name == "tflite-micro"
    assert mcu.tail.manifest.engine.name == "litert"
    assert mcu.head.manifest.outputs[0].layout == "nhwc"
    data = picture_set(48, seed=22)
    way = evaluate_pair(mcu.head, mcu.tail, data, name="mcu")
    other = evaluate_pair(pairs["bottlefit"].head, pairs["bottlefit"].tail, data, name="onnx")
    same = way.logits.argmax(1) == other.logits.argmax(1)
    assert same.mean() > 0.9
    assert way.sizes.mean() == pytest.approx(other.sizes.mean(), rel=0.25)
    assert way.cost.macs > 0


@pytest.mark.parametrize("name", ["mcu", "gdn"])
def test_head_codec_and_litert_tail_equal_the_unsplit_network_on_one_engine(name, request, picture_set):
    pair = request.getfixturevalue(name)
    found = count_equal(pair.head, pair.tail, _inputs(pair, picture_set(24, seed=11)))
    assert (found.equal, found.count, found.unsplit) == (24, 24, True)
    assert ("TensorFlow Lite Micro" in found.engine) == (name == "mcu")
    assert pair.equality.equal == pair.equality.count == 16


def test_a_tail_with_another_weight_is_not_equal(gdn, picture_set, monkeypatch):
    """The comparison sees changed bytes of one half."""
    data = bytearray(gdn.tail.entry.read_bytes())
    weights = max(load_tflite(bytes(data)).model.buffers, key=lambda one: 0 if one.data is None else len(one.data))
    at = bytes(data).index(np.asarray(weights.data, np.uint8).tobytes())
    for offset in range(at, at + len(weights.data)):
        data[offset] ^= 0x20
    inputs = _inputs(gdn, picture_set(6, seed=11))
    joined = join_tflite(gdn.head.entry.read_bytes(), bytes(data))
    monkeypatch.setattr("export.tflite_join.join_tflite", lambda *_: joined)
    assert count_equal(gdn.head, gdn.tail, inputs).equal < 6


def test_the_joined_file_holds_both_halves(gdn):
    halves = [load_tflite(one.entry) for one in (gdn.head, gdn.tail)]
    joined = load_tflite(join_tflite(gdn.head.entry.read_bytes(), gdn.tail.entry.read_bytes()))
    assert [one.engine_name for one in joined.inputs] == ["head/image"]
    assert [one.engine_name for one in joined.outputs] == ["tail/logits"]
    assert [one.op for one in joined.graph.nodes] == [one.op for half in halves for one in half.graph.nodes]
    with pytest.raises(ConversionError, match="a head and its tail"):
        join_tflite(gdn.tail.entry.read_bytes(), gdn.head.entry.read_bytes())


def test_a_litert_head_divides_and_gives_the_trained_encoders_integers(gdn, trained, colour, picture_set):
    """litert-torch leaves `torch.reciprocal` out of a graph without a word; the head's GDN needs its quotient."""
    augmentation = augmentation_of(colour.PREPROCESSING)
    calibration, data = picture_set(96, seed=2), picture_set(12, seed=9)
    grid = fit_grid(trained["entropic"], input_batches(calibration, augmentation))
    head = IntegerHead(trained["entropic"].bottleneck, grid)
    pictures = calibration_pictures(data, augmentation)
    wanted = np.concatenate([head(torch.from_numpy(one)).numpy() for one in pictures]).astype(int)
    session = open_session(gdn.head)
    made = [session.run([tensor])[0].transpose(0, 3, 1, 2) for tensor in _inputs(gdn, data)]
    assert np.abs(np.concatenate(made).astype(int) - wanted).mean() < 0.15 * max(wanted.std(), 1)
    assert [one.op for one in load_tflite(gdn.head.entry).graph.nodes].count("DIV") == 2


def test_an_int8_tail_of_litert_answers_in_integers_with_a_scale(gdn, pairs, picture_set):
    logits = gdn.tail.manifest.outputs[0]
    assert (logits.dtype, logits.quantisation is not None) == ("int8", True)
    data = picture_set(48, seed=22)
    way = evaluate_pair(gdn.head, gdn.tail, data, name="litert")
    other = evaluate_pair(pairs["entropic"].head, pairs["entropic"].tail, data, name="onnx")
    assert (way.logits.argmax(1) == other.logits.argmax(1)).mean() > 0.9
    assert way.sizes.mean() == pytest.approx(other.sizes.mean(), rel=0.25)


@pytest.mark.parametrize("name", ["mcu", "gdn"])
def test_verify_accepts_head_and_tail(name, request):
    pair = request.getfixturevalue(name)
    for artefact in (pair.head, pair.tail):
        assert run(["verify", str(artefact.folder)]) == 0


@pytest.mark.mcu
def test_the_heads_c_gives_the_same_integers_on_a_simulated_board(mcu):
    assert run(["verify", str(mcu.head.folder), "--on", "qemu"]) == 0


@pytest.mark.parametrize("method", ["positions", "codebook"])
def test_chosen_places_and_words_are_integers_on_litert_too(method, colour, picture_set):
    """Weights as they come: only the head's two forms are compared."""
    torch.manual_seed(4)
    chosen = find_method(method)
    trace = trace_network(colour.trained_network(), torch.zeros(1, 3, 32, 32))
    network, _ = inject(trace, "layer2", lambda at: chosen.make(at, options_from(chosen, {})), size=(32, 32))
    augmentation = augmentation_of(colour.PREPROCESSING)
    data = picture_set(24)
    with torch.no_grad():
        for part in network.eval().bottleneck.encoder.parameters():
            part *= 3  # latents over more than a step
    head = IntegerHead(network.bottleneck, fit_grid(network, input_batches(data, augmentation)))
    pictures = calibration_pictures(data, augmentation)
    made = head_to_litert(head, pictures, floats=method == "codebook")
    runner = open_tflite_runner(made.data, ["image"], ["latent"])
    found = np.concatenate([runner([made.stored(one)])[0].transpose(0, 3, 1, 2) for one in pictures]).astype(int)
    wanted = np.concatenate([head(torch.from_numpy(one)).numpy() for one in pictures]).astype(int)
    assert wanted.std() > 0.5
    if method == "codebook":
        assert (found == wanted).mean() > 0.8  # another word where two are about as near
    else:
        assert np.abs(found - wanted).mean() < 0.15 * max(wanted.std(), 1)


def test_a_gdn_head_for_a_microcontroller_is_refused_by_name(trained, picture_set, options):
    with pytest.raises(PairFormError, match="GDN"):
        write_litert_pair(trained["entropic"], picture_set(24), options, board=load_board(BOARD))


def test_an_operator_without_a_kernel_in_the_layers_that_a_head_keeps_is_named(picture_set, options):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    method = find_method("klt")
    student, _ = inject(
        trace_network(network, torch.zeros(1, 3, 32, 32)),
        "2",
        lambda at: method.make(at, method.options()),
        size=(32, 32),
        front="2",
    )
    data = picture_set(24)
    fit(student, data, augmentation_of(options.preprocessing))
    there = replace(options, out=options.out / "gelu", head_target=BOARD)
    with pytest.raises(UnsupportedOpError, match=r"node \d+ \(GELU\): no C kernel for it\. Accepted: .*CONV_2D"):
        write_litert_pair(student, data, there, board=load_board(BOARD))
