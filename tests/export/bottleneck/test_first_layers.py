"""A device that sends the first layers of its stream alone: fewer bytes, the answer that an evaluation says, over a real broker."""

import json
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from device_profiles.link import parse_link
from device_profiles.plan_table import Choice, PlanTable, PlanTableError, check_plan_table
from edge_runtime.adapt import Rules
from edge_runtime.offload import OffloadError
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.planned import PlannedOffloader, PlannedOptions
from edge_runtime.wire import ENVELOPE_BYTES
from export.evaluation import EvaluationOptions, evaluate_pairs
from export.pair_runner import PairRunner
from export.trained_manifest import TrainedPairOptions
from export.trained_pair import augmentation_of, write_trained_pair
from export.variant_export import dump_variants, to_variants
from orchestrator.cli import run
from orchestrator.tail_server import TailServer, serve_artefact
from split.distill import fit
from split.inject import inject, trace_network
from split.methods import find_method
from split.plan_variant_file import parse_variants
from split.plan_variants import bottleneck_candidate
from split.training_data import PictureSet


@pytest.fixture(scope="module")
def stream(colour, picture_set, tmp_path_factory):
    """A pair whose stream has three layers, computed and not trained."""
    method = find_method("klt")
    options = replace(method.options(), step=0.3, rates=3)
    trace = trace_network(colour.trained_network(), torch.zeros(1, 3, 32, 32))
    student, _ = inject(trace, "layer2", lambda at: method.make(at, options), size=(32, 32), front="layer2")
    data = picture_set(96, seed=2)
    fit(student, data, augmentation_of(colour.PREPROCESSING))
    naming = TrainedPairOptions(
        out=tmp_path_factory.mktemp("stream"), name="stream", source_sha256="0" * 64, preprocessing=colour.PREPROCESSING
    )
    return write_trained_pair(student, data, naming)


def picture(data: PictureSet) -> np.ndarray:
    return data.images[0].permute(1, 2, 0).numpy()


def test_at_most_so_many_layers_are_sent_and_the_tail_answers_as_evaluated(stream, picture_set, broker):
    with (
        TailServer(broker, [serve_artefact(stream.tail)]),
        Offloader(broker, "dev", head=stream.head, options=OffloadOptions(deadline_ms=10_000, layers=2)) as device,
    ):
        device.wait_connected()
        sizes = []
        for layers in (1, 2, 3):
            evaluated = PairRunner(stream.head, stream.tail, layers=layers)
            tensor = evaluated.input_of(picture(picture_set(4, seed=9)))
            frame = evaluated.frame(evaluated.latents(tensor))
            answer = device.infer(tensor, layers=layers)
            assert (answer.source, answer.bytes_sent) == ("remote", len(frame) + ENVELOPE_BYTES)
            assert np.array_equal(answer.outputs[0], evaluated.outputs(frame)[0])
            sizes.append(answer.bytes_sent)
            evaluated.close()
        assert sizes == sorted(set(sizes))
        assert device.infer(tensor).bytes_sent == sizes[1]  # the options' number
        assert device.infer(tensor, layers=0).bytes_sent == device.infer(tensor, layers=9).bytes_sent == sizes[2]
        with pytest.raises(OffloadError, match="or 0 for all, found -1"):
            device.infer(tensor, layers=-1)
    with pytest.raises(OffloadError, match="or 0 for all, found -2"):
        OffloadOptions(layers=-2)


def test_a_plan_sends_as_many_layers_as_it_was_measured_with(stream, picture_set, broker):
    data = picture_set(6, seed=9)
    found = evaluate_pairs(
        {"stream": (stream.head, stream.tail)}, None, data, EvaluationOptions("colours", codecs=False)
    )
    variants = parse_variants(dump_variants(to_variants(found, {"stream": stream.head})))
    ways = {one.layers: bottleneck_candidate(one.bottleneck(), 100).choice for one in variants.bottlenecks}
    assert set(ways) == {0, 1, 2}
    sizes, least = {}, []
    with TailServer(broker, [serve_artefact(stream.tail)]):
        for layers, choice in ways.items():
            table = check_plan_table(
                PlanTable(
                    model="m", device="d", host="h", rates_bytes_per_s=(1e6,), rtts_ms=(2.0,), choices=(choice,),
                    cells=((0,),), link=parse_link("8mbit/2ms"), deadline_ms=10_000,
                )
            )  # fmt: skip
            with PlannedOffloader(broker, "dev", table, heads=[stream.head]) as device:
                device.wait_connected()
                runner = PairRunner(stream.head, stream.tail, layers=layers)
                tensor = runner.input_of(picture(data))
                answer = device.infer(tensor)
                assert answer.plan_id == choice.plan_id
                assert answer.bytes_sent == len(runner.frame(runner.latents(tensor))) + ENVELOPE_BYTES
                sizes[layers] = answer.bytes_sent
                runner.close()
            options = OffloadOptions(layers=1)  # what the operator allows at most
            with PlannedOffloader(broker, "dev", table, heads=[stream.head], options=options) as device:
                device.wait_connected()
                least.append(device.infer(tensor).bytes_sent)
    assert sizes[1] < sizes[2] < sizes[0]
    assert least == [sizes[1]] * 3
    with pytest.raises(PlanTableError, match="Wanted layers >= 0 of choice 'stream, 2 layers', found -1"):
        check_plan_table(msgspec.structs.replace(table, choices=(msgspec.structs.replace(choice, layers=-1),)))


def test_a_device_that_is_to_be_accurate_sends_more_layers_when_the_link_is_better_than_planned(
    stream, picture_set, broker, monkeypatch
):
    key, opened, resets = stream.head.key, [], []

    def counted(*given, **named):
        opened.append(Offloader(*given, **named))
        opened[-1].breaker.reset = lambda: resets.append(len(opened))
        return opened[-1]

    monkeypatch.setattr("edge_runtime.planned.Offloader", counted)
    choices = tuple(
        Choice(name=name, kind="split", artefact=key, device_ms=1.0, device_p95_ms=2.0, host_ms=1.0, host_p95_ms=2.0,
               up_bytes=size, down_bytes=100, layers=layers)
        for name, size, layers in (("first layer", 150, 1), ("all layers", 400, 0))
    )  # fmt: skip
    table = check_plan_table(
        PlanTable(model="m", device="d", host="h", rates_bytes_per_s=(1e3, 3e4), rtts_ms=(2.0,), choices=choices,
                  cells=((0,), (1,)), link=parse_link("8kbit/2ms"), deadline_ms=10_000, objective="accuracy")
    )  # fmt: skip
    planned = PlannedOptions(window_s=0.02, rules=Rules(rest=1))
    with (
        TailServer(broker, [serve_artefact(stream.tail)]),
        PlannedOffloader(broker, "dev", table, heads=[stream.head], planned=planned) as device,
    ):
        device.wait_connected()
        runner = PairRunner(stream.head, stream.tail)
        tensor = runner.input_of(picture(picture_set(6, seed=9)))
        runner.close()
        first, ends = device.infer(tensor), time.monotonic() + 60
        while not device.changes and time.monotonic() < ends:
            device.infer(tensor)
        assert [change.plan.name for change in device.changes] == ["all layers"]
        assert "better for accuracy" in device.changes[0].why
        last = device.infer(tensor)
        assert device.counters.local == 0
    assert len(opened) == 1  # the same head goes on, over the same connection
    assert resets == [1]  # what did not get through before may do so now
    assert (first.plan_id, last.plan_id) == tuple(choice.plan_id for choice in choices)
    assert first.bytes_sent < last.bytes_sent


def test_a_head_of_one_layer_sends_what_it_has(pairs, picture_set, broker):
    pair = pairs["entropic"]
    with (
        TailServer(broker, [serve_artefact(pair.tail)]),
        Offloader(broker, "dev", head=pair.head, options=OffloadOptions(deadline_ms=10_000)) as device,
    ):
        device.wait_connected()
        runner = PairRunner(pair.head, pair.tail)
        tensor = runner.input_of(picture(picture_set(4, seed=9)))
        assert device.infer(tensor, layers=1).bytes_sent == device.infer(tensor).bytes_sent
        runner.close()


def test_a_demo_sends_so_many_layers(stream, picture_set, tmp_path, capsys):
    Image.fromarray(picture(picture_set(4, seed=9))).save(tmp_path / "one.png")
    words = [
        "demo",
        "--pair",
        str(stream.head.folder),
        str(stream.tail.folder),
        "--pictures",
        str(tmp_path),
        "--link",
        "none",
    ]
    sizes = []
    for layers in ("1", "2", "0"):
        assert run([*words, "--layers", layers, "--out", str(tmp_path / layers), "--json"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["pair"]["bytes_largest"])
    assert sizes == sorted(set(sizes))
