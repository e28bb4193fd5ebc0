"""Each artefact gets the input that its own manifest describes: head, whole model as fallback, and those of plans."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from device_profiles.link import parse_link
from device_profiles.plan_table import Choice, PlanTable, check_plan_table
from edge_runtime import frame_inputs
from edge_runtime.frame_inputs import FrameInputs
from edge_runtime.manifest import Cut, Preprocessing, Quantisation, TensorSpec, make_cut_id
from edge_runtime.offload import OffloadError
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.pipeline import Pipeline, PlanChoice
from edge_runtime.planned import PlannedOffloader
from edge_runtime.preprocess import encode_picture, prepare
from edge_runtime.session import InputError
from edge_runtime.sources import Frame
from orchestrator.tail_server import TailServer, serve_artefact

NOBODY = "mqtt://127.0.0.1:1"
SHAPE = (1, 3, 2, 2)
CUTS = Preprocessing(crop=(2, 2), mean=(0.0,) * 3, std=(255.0,) * 3)
RESIZES = Preprocessing(resize_short=2, crop=(2, 2), mean=(127.5,) * 3, std=(127.5,) * 3)
PICTURE = np.random.default_rng(4).integers(0, 255, (6, 8, 3), np.uint8)


def spec(name, **more):
    return TensorSpec(name=name, engine_name=name, dtype="float32", shape=SHAPE, layout="nchw", **more)


@pytest.fixture
def make(make_add_one):
    """An artefact that adds one to a picture of 2 x 2, in this role and with this preprocessing."""

    def build(role, preprocessing, **changes):
        tensors = (spec("x"),)
        cut_id = make_cut_id(head_sha256="2" * 64, tensors=tensors, codec="raw", tables_sha256=None)
        cut = {
            "head": Cut(cut_id=cut_id, tensors=tensors),
            "tail": Cut(accepts=(cut_id,), tensors=tensors),
        }.get(role)
        values = {"inputs": tensors, "outputs": (spec("y"),), "preprocessing": preprocessing, "cut": cut, **changes}
        return make_add_one(f"{role}{len(changes)}", SHAPE, role=role, **values)

    return build


@pytest.fixture
def parts(make):
    """Head, tail and whole model of one network; head and whole model prepare a picture in different ways."""
    return make("head", RESIZES), make("tail", None), make("whole", CUTS)


def test_a_picture_for_a_model_of_arrays_is_named_with_what_to_do(make):
    whole = make("whole", None)
    array = np.zeros(SHAPE, np.float32)
    assert FrameInputs(Frame(0, "a", array)).of(whole)[0] is array
    with pytest.raises(InputError, match=r"found a picture \(6, 8, 3\).*--crop.*--source module:function"):
        FrameInputs(Frame(0, "a.png", PICTURE)).of(whole)


def table(head):
    choices = (
        Choice(name="local", kind="local", device_ms=500.0, device_p95_ms=600.0),
        Choice(
            name="split", kind="split", artefact=head.key, device_ms=1.0, device_p95_ms=1.0, host_ms=1.0,
            host_p95_ms=1.0, up_bytes=96, down_bytes=100,
        ),
    )  # fmt: skip
    return PlanTable(
        model="m", device="d", host="h", rates_bytes_per_s=(1e6,), rtts_ms=(2.0,), choices=choices, cells=((1,),),
        link=parse_link("8mbit/2ms"),
    )  # fmt: skip


def input_of(artefact):
    return prepare(PICTURE, artefact.manifest.inputs[0], artefact.manifest.preprocessing)


def run(pipeline, frame=None):
    try:
        pipeline.wait_connected(5)
        return pipeline.run(frame or Frame(0, "0", PICTURE))
    finally:
        pipeline.close()


def test_the_fallback_answers_a_picture_as_the_whole_model_alone_does(parts):
    head, _, whole = parts
    options = OffloadOptions(deadline_ms=200)
    alone = run(Pipeline(NOBODY, "dev", head=None, whole=whole, options=options)).answer
    backed = Pipeline(NOBODY, "dev", head=head, whole=whole, options=options)
    backed._offloader.link.close()  # nobody there: no need to wait for it
    answer = backed.run(Frame(0, "0", PICTURE)).answer
    backed.close()
    assert answer.source == "local"
    np.testing.assert_array_equal(answer.outputs[0], input_of(whole) + 1)
    np.testing.assert_array_equal(answer.outputs[0], alone.outputs[0])
    assert answer.breakdown.preprocess_ms > 0


def test_head_and_shadow_comparison_take_each_their_own(broker, parts):
    head, tail, whole = parts
    options = OffloadOptions(deadline_ms=5000, shadow_share=1.0)
    with TailServer(broker, [serve_artefact(tail)]):
        outcome = run(Pipeline(broker, "dev", head=head, whole=whole, options=options))
    assert outcome.answer.source == "remote"
    np.testing.assert_array_equal(outcome.answer.outputs[0], input_of(head) + 1 + 1)
    assert outcome.agrees is bool(np.argmax(input_of(head)) == np.argmax(input_of(whole)))


def test_a_picture_that_only_the_head_can_take_is_answered_without_a_comparison(broker, parts):
    head, tail, whole = parts
    options = OffloadOptions(deadline_ms=5000, shadow_share=1.0)
    with TailServer(broker, [serve_artefact(tail)]):
        tiny = Frame(0, "0", PICTURE[:1, :1])  # the head enlarges it, the whole model only cuts
        outcome = run(Pipeline(broker, "dev", head=head, whole=whole, options=options), tiny)
    assert (outcome.answer.source, outcome.agrees) == ("remote", None)


def test_plans_of_different_artefacts_take_each_their_own(broker, parts):
    head, tail, whole = parts
    plan = PlanChoice(check_plan_table(table(head)), (head,))
    with TailServer(broker, [serve_artefact(tail)]):
        away = run(Pipeline(broker, "dev", head=None, whole=whole, options=OffloadOptions(deadline_ms=5000), plan=plan))
        here = PlannedOffloader(broker, "dev", plan.table, heads=(), whole=whole)
        local = here.infer(inputs=FrameInputs(Frame(0, "0", PICTURE)).of)
        here.close()
    assert (away.answer.source, local.source) == ("remote", "local")
    np.testing.assert_array_equal(away.answer.outputs[0], input_of(head) + 1 + 1)
    np.testing.assert_array_equal(local.outputs[0], input_of(whole) + 1)


def test_a_picture_that_a_plan_sends_is_resized_as_the_whole_model_wants_it(broker, parts, monkeypatch):
    head, _, whole = parts
    seen = []
    monkeypatch.setattr(
        "edge_runtime.pipeline.encode_picture", lambda _image, preprocessing, _form: seen.append(preprocessing) or b"-"
    )
    sends = Choice(
        name="jpeg",
        kind="remote",
        picture="jpeg:75",
        device_ms=1.0,
        device_p95_ms=1.0,
        up_bytes=96,
        host_ms=1.0,
        host_p95_ms=1.0,
    )
    plans = msgspec.structs.replace(table(head), choices=(table(head).choices[0], sends))
    pipeline = Pipeline(
        broker, "dev", head=head, whole=whole, options=OffloadOptions(deadline_ms=300), plan=PlanChoice(plans)
    )
    answer = run(pipeline).answer  # no tail is there
    assert seen == [CUTS]
    np.testing.assert_array_equal(answer.outputs[0], input_of(whole) + 1)


def away_to(host, picture=None):
    """A table with one plan away, to this whole model on the host, beside the local one."""
    sends = Choice(
        name="away", kind="remote", artefact=host.key, picture=picture, device_ms=1.0, device_p95_ms=1.0, host_ms=1.0,
        host_p95_ms=1.0, up_bytes=96, down_bytes=100,
    )  # fmt: skip
    return msgspec.structs.replace(table(host), choices=(table(host).choices[0], sends))


@pytest.mark.parametrize("picture", [None, "raw:0", "webp:100"])
def test_a_plan_makes_the_input_of_the_model_that_runs_on_the_host(broker, make, parts, picture, monkeypatch):
    whole, host = parts[2], make("whole", RESIZES, licences=())
    seen = []
    monkeypatch.setattr(
        "edge_runtime.pipeline.encode_picture",
        lambda image, preprocessing, form: seen.append(preprocessing) or encode_picture(image, preprocessing, form),
    )
    plan = PlanChoice(away_to(host, picture), (host,))
    with TailServer(broker, [serve_artefact(host)]):
        answer = run(
            Pipeline(broker, "dev", head=None, whole=whole, options=OffloadOptions(deadline_ms=5000), plan=plan)
        ).answer
    assert answer.source == "remote"
    if picture == "webp:100":
        assert seen == [RESIZES]
    else:
        np.testing.assert_array_equal(answer.outputs[0], input_of(host) + 1)


def test_a_plan_for_a_model_that_is_not_known_here_sends_no_input_of_another(make, parts):
    whole, host = parts[2], make("whole", RESIZES, licences=())
    for picture in (None, "raw:0"):
        with PlannedOffloader(NOBODY, "dev", away_to(host, picture), whole=whole) as device:
            assert [choice.kind for choice in device._table.choices] == ["local"]
            np.testing.assert_array_equal(device.infer(input_of(whole)).outputs[0], input_of(whole) + 1)
    with (
        PlannedOffloader(NOBODY, "dev", away_to(host, "jpeg:75"), whole=whole) as device,
        pytest.raises(OffloadError, match=f"whole model {host.key} of the host.*`picture`"),
    ):
        device.infer(input_of(whole))


def test_a_picture_for_a_model_that_is_not_known_here_needs_one_that_says_how_large_it_is(make):
    whole, host = make("whole", None), make("whole", RESIZES, licences=())
    array = np.ones(SHAPE, np.float32)
    with PlannedOffloader(NOBODY, "dev", away_to(host, "jpeg:75"), whole=whole) as device:
        assert [choice.kind for choice in device._table.choices] == ["local"]
        answer = device.infer(inputs=lambda _: [array], picture=lambda form, preprocessing: b"")
    np.testing.assert_array_equal(answer.outputs[0], array + 1)


def test_arrays_alone_go_to_no_model_that_takes_another_input(parts):
    head, _, whole = parts
    with (
        Offloader(NOBODY, "dev", head=head, fallback=whole, options=OffloadOptions(deadline_ms=100)) as device,
        PlannedOffloader(NOBODY, "dev", table(head), heads=[head], whole=whole) as planned,
    ):
        with pytest.raises(OffloadError, match=r"mean \(0.0, 0.0, 0.0\).*found the input of the head.*mean \(127.5"):
            device.infer(input_of(head))
        with pytest.raises(OffloadError, match="Pass `inputs`"):
            planned.infer(input_of(head))
        answer = device.infer(input_of(head), local=lambda: [input_of(whole)])
    np.testing.assert_array_equal(answer.outputs[0], input_of(whole) + 1)


def test_arrays_alone_are_for_both_where_only_the_part_of_the_picture_differs(make):
    head, whole = make("head", RESIZES), make("whole", msgspec.structs.replace(RESIZES, resize_short=3))
    with Offloader(NOBODY, "dev", head=head, fallback=whole, options=OffloadOptions(deadline_ms=100)) as device:
        assert device.infer(input_of(head)).source == "local"


def test_a_fallback_of_another_shape_than_the_remote_model_is_refused_by_name(parts):
    whole = parts[2]
    with (
        Offloader(NOBODY, "dev", key="ee" * 8, fallback=whole) as device,
        pytest.raises(OffloadError, match=r"found float32 \(1, 4.*whole model in"),
    ):
        device.infer(np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"preprocessing": replace}, True),
        ({"inputs": (spec("other"),)}, True),
        ({"inputs": (spec("x", quantisation=Quantisation(scale=0.5, zero_point=1)),)}, False),
        ({"preprocessing": CUTS}, False),
    ],
)
def test_nothing_is_prepared_twice_for_artefacts_that_take_the_same(parts, monkeypatch, change, same):
    head = parts[0]
    if change.get("preprocessing") is replace:
        change = {"preprocessing": msgspec.structs.replace(RESIZES)}
    other = replace(head, manifest=msgspec.structs.replace(head.manifest, **change))
    calls = []
    monkeypatch.setattr(frame_inputs, "prepare", lambda *given: calls.append(given) or prepare(*given))
    inputs = FrameInputs(Frame(0, "0", PICTURE))
    first = inputs.of(head)
    assert (inputs.of(other) is first) is same
    assert len(calls) == (1 if same else 2)
