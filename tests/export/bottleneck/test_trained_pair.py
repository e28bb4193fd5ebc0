import msgspec
import numpy as np
import onnx
import pytest
import torch

from edge_runtime.artefact import open_artefact, read_raw
from edge_runtime.codecs import codec_of
from edge_runtime.entropy import EntropyCodec, count_tables
from edge_runtime.manifest import Preprocessing
from edge_runtime.session import open_session
from edge_runtime.wire import CODEC_ENTROPY, WireError, encode_tensors
from export.joined import count_equal, join_models
from export.pair_runner import PairError, PairRunner
from export.trained_pair import PairFormError, augmentation_of, state_quality
from orchestrator.cli import run
from split.augment import centre
from split.latents import IntegerHead, fit_grid, input_batches

NAMES = ("entropic", "bottlefit")


def _ops(artefact):
    return [node.op_type for node in onnx.load(artefact.entry).graph.node]


@pytest.mark.parametrize("name", NAMES)
def test_the_head_ends_in_round_clip_cast_and_holds_int8_weights(pairs, name):
    head = pairs[name].head
    model = onnx.load(head.entry)
    assert _ops(head)[-3:] == ["Round", "Clip", "Cast"]
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT8
    weights = [one for one in model.graph.initializer if len(one.dims) == 4 and not one.name.startswith("latent_")]
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}
    assert "BatchNormalization" not in _ops(head)


@pytest.mark.parametrize("name", NAMES)
def test_the_int8_head_makes_the_integers_of_the_trained_encoder_up_to_a_few_steps(
    pairs, trained, colour, picture_set, name
):
    augmentation = augmentation_of(colour.PREPROCESSING)
    calibration, data = picture_set(96, seed=2), picture_set(24, seed=9)
    grid = fit_grid(trained[name], input_batches(calibration, augmentation))
    wanted = IntegerHead(trained[name].bottleneck, grid)(centre(data.images, augmentation)).numpy().astype(int)
    session = open_session(pairs[name].head)
    found = np.concatenate([session.run([centre(one[None], augmentation).numpy()])[0] for one in data.images]).astype(
        int
    )
    spread = wanted.std()
    assert np.abs(found - wanted).mean() < 0.15 * max(spread, 1)


@pytest.mark.parametrize("name", NAMES)
def test_golden_vectors_of_the_tail_start_from_integers_and_verify_accepts_both(pairs, name, capsys):
    for artefact in (pairs[name].head, pairs[name].tail):
        assert run(["verify", str(artefact.folder)]) == 0
        assert len(artefact.manifest.golden) >= 2
    tail = pairs[name].tail
    latent = read_raw(tail, tail.manifest.golden[0].inputs[0], tail.manifest.inputs[0])
    assert latent.dtype == np.int8
    assert np.abs(latent).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_head_codec_and_tail_equal_the_unsplit_quantised_network_bit_for_bit(pairs, picture_set, name):
    pair = pairs[name]
    runner = PairRunner(pair.head, pair.tail)
    inputs = [runner.input_of(one.numpy().transpose(1, 2, 0)) for one in picture_set(24, seed=11).images]
    found = count_equal(pair.head, pair.tail, inputs)
    assert (found.equal, found.count) == (24, 24)


def test_the_joined_network_holds_both_halves(pairs):
    pair = pairs["entropic"]
    joined = onnx.ModelProto.FromString(join_models(pair.head.entry.read_bytes(), pair.tail.entry.read_bytes()))
    assert [one.name for one in joined.graph.input] == ["head/image"]
    assert [one.name for one in joined.graph.output] == ["tail/logits"]
    assert len(joined.graph.node) == len(_ops(pair.head)) + len(_ops(pair.tail))


def test_an_int8_tail_has_int8_weights_and_reads_the_latents_own_grid(pairs):
    ops = _ops(pairs["bottlefit"].tail)
    assert ops[:3] == ["Cast", "Mul", "Add"]
    assert pairs["bottlefit"].tail.manifest.precision == "int8"
    weights = [
        one
        for one in onnx.load(pairs["bottlefit"].tail.entry).graph.initializer
        if len(one.dims) == 4 and not one.name.startswith("latent_")
    ]
    assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}


def test_a_tail_refuses_the_head_of_another_cut(pairs):
    with pytest.raises(PairError, match="accepts the cut"):
        PairRunner(pairs["entropic"].head, pairs["bottlefit"].tail)
    with pytest.raises(PairError, match="a head and a tail"):
        PairRunner(pairs["entropic"].tail, pairs["entropic"].head)


@pytest.mark.parametrize("wrong", ["cut", "tables", "shape"])
def test_frames_of_another_cut_table_set_or_shape_are_refused_before_they_are_decoded(
    pairs, picture_set, monkeypatch, wrong
):
    pair = pairs["entropic"]
    runner = PairRunner(pair.head, pair.tail)
    latents = runner.latents(runner.input_of(picture_set(1).images[0].numpy().transpose(1, 2, 0)))
    code, codec = codec_of(pair.head)
    cut_id = bytes.fromhex(pair.head.key)
    assert code == CODEC_ENTROPY
    if wrong == "cut":
        frame = encode_tensors(latents, cut_id=bytes(8), codec=codec, code=code)
    elif wrong == "tables":
        other = EntropyCodec(count_tables([np.zeros_like(latents[0])]))
        frame = encode_tensors(latents, cut_id=cut_id, codec=other, code=code)
    else:
        taller = np.concatenate([latents[0], latents[0]], axis=2)[:, :, : latents[0].shape[2] + 1]
        frame = encode_tensors([np.ascontiguousarray(taller)], cut_id=cut_id, codec=codec, code=code)
    monkeypatch.setattr(EntropyCodec, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(WireError):
        runner.logits(b"".join(frame))


def test_quality_is_written_into_both_manifests_and_the_cut_stays(pairs, tmp_path):
    from edge_runtime.manifest import Quality
    from export.pipeline import copy_artefact
    from export.trained_pair import TrainedPair

    pair = pairs["entropic"]
    copy = TrainedPair(
        copy_artefact(pair.head, tmp_path / "head"), copy_artefact(pair.tail, tmp_path / "tail"), pair.equality
    )
    quality = Quality(
        metric="top-1",
        reference=1.0,
        this=0.5,
        drop=0.5,
        agreement=0.5,
        sqnr_db=None,
        data="d",
        data_sha256="0" * 64,
        count=4,
    )
    state_quality(copy, quality)
    head, tail = open_artefact(tmp_path / "head"), open_artefact(tmp_path / "tail")
    assert head.manifest.quality == tail.manifest.quality == quality
    assert head.key == pair.head.key
    assert tail.manifest.cut.accepts == (head.key,)


def test_only_square_pictures_of_three_channels_can_be_trained_on():
    with pytest.raises(PairFormError, match="square"):
        augmentation_of(Preprocessing(crop=(32, 48), mean=(0.0,) * 3, std=(1.0,) * 3))
    assert msgspec.structs.asdict(Preprocessing(crop=(8, 8), mean=(255.0,) * 3, std=(255.0,) * 3))["crop"] == (8, 8)
    assert torch.equal(
        centre(
            torch.full((1, 3, 8, 8), 255, dtype=torch.uint8),
            augmentation_of(Preprocessing(crop=(8, 8), mean=(255.0,) * 3, std=(255.0,) * 3)),
        ),
        torch.zeros(1, 3, 8, 8),
    )
