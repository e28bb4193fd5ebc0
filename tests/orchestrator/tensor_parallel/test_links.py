"""What crosses the links: the collective that is chosen, smaller payloads, and traces of a step."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tensor_parallel.choice import Measured, choose, collective_ms
from orchestrator.tensor_parallel.engine import Piece
from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.payload import decode, encode, payload_bytes, rounded
from orchestrator.tensor_parallel.trace import Recorder, pack_spans, unpack_spans, write_trace
from tests.orchestrator.tensor_parallel.test_equality import PROMPT, reference, stepwise

EDGE = Measured(rtt_ms=2.0, bytes_per_s=37.5e6)
LOOPBACK = Measured(rtt_ms=0.08, bytes_per_s=1e9, one_machine=True)


def test_a_real_link_takes_the_mesh_and_many_ranks_on_one_machine_the_star():
    assert choose(4, 16384, EDGE) == "mesh"
    assert choose(4, 16384, LOOPBACK) == "star"
    assert choose(1, 16384, EDGE) == "mesh"
    assert collective_ms("mesh", 1, 16384, EDGE) == 0


@given(ranks=st.integers(2, 16), nbytes=st.integers(1, 1 << 20), rtt=st.floats(0.01, 50))
def test_on_machines_of_their_own_one_exchange_always_beats_two(ranks, nbytes, rtt):
    link = Measured(rtt, 1e7)
    assert choose(ranks, nbytes, link) == "mesh"
    assert collective_ms("star", ranks, nbytes, link) == pytest.approx(2 * collective_ms("mesh", ranks, nbytes, link))


@pytest.mark.parametrize(("ranks", "wanted"), [(2, "MeshCollective"), (4, "StarCollective")])
def test_auto_measures_the_links_and_runs_what_the_model_chooses(ranks, wanted, cluster, tiny, monkeypatch):
    monkeypatch.setattr("orchestrator.tensor_parallel.cluster.measure_links", _measured_loopback)
    running = cluster(tiny.folder, ranks=ranks, collective="auto")
    assert type(running.engine.epoch.collective).__name__ == wanted
    torch.testing.assert_close(stepwise(running.engine, PROMPT), reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


def _measured_loopback(links, *, one_machine, timeout_s):
    from orchestrator.tensor_parallel.probe import measure_links

    found = measure_links(links, one_machine=one_machine, timeout_s=timeout_s)
    assert 0 < found.rtt_ms < 1000
    assert found.bytes_per_s > 0
    assert found.one_machine
    return LOOPBACK  # what a busy machine measures is not what an idle one does


@pytest.mark.parametrize(("kind", "error"), [("float32", 0.0), ("float16", 2**-10), ("int8", 0.5 / 127)])
@pytest.mark.parametrize("shape", [(1, 48), (3, 33)])
def test_a_payload_has_its_size_and_is_off_by_a_step_at_most(kind, error, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    data = encode(values, kind)
    assert len(data) == payload_bytes(kind, shape)
    found = decode(bytearray(data), shape, kind)
    assert (found - values).abs().max() <= error * values.abs().max() + 1e-7
    assert torch.equal(found, rounded(values, kind))


@pytest.mark.parametrize("collective", ["mesh", "star"])
@pytest.mark.parametrize(("kind", "bound"), [("float16", 0.05), ("int8", 2.0)])
def test_smaller_payloads_stay_near_the_reference(collective, kind, bound, cluster, tiny):
    running = cluster(tiny.folder, ranks=3, collective=collective, payload=kind)
    wanted = reference(tiny.model, PROMPT)
    difference = (stepwise(running.engine, PROMPT) - wanted).abs().max()
    assert 0 < difference < bound * wanted.abs().max() / 10


def test_a_trace_has_every_rank_and_what_it_did(cluster, tiny, tmp_path):
    engine = cluster(tiny.folder, ranks=3).engine
    engine.step([Piece(0, 0, tuple(PROMPT[:4]), 1)])
    found = engine.trace()
    assert list(found) == ["n0", "n1", "n2"]
    for spans in found.values():
        assert {"compute", "communicate"} <= {span.doing for span in spans}
        assert all(0 <= span.start_s <= span.stop_s for span in spans)
    engine.step([Piece(0, 4, tuple(PROMPT[4:5]), 1)])  # a trace leaves the cluster usable
    write_trace(tmp_path / "trace.json", found)
    events = json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    assert {event["pid"] for event in events if event["ph"] == "X"} == {0, 1, 2}


def test_spans_are_those_of_the_last_step_and_garbage_is_refused():
    recorder = Recorder()
    with recorder.doing("load", "old"):
        pass
    recorder.begin()
    with recorder.doing("compute", "new"):
        pass
    spans = recorder.spans()
    assert [span.name for span in spans] == ["new"]
    assert unpack_spans(pack_spans(spans), "n1") == spans
    with pytest.raises(PeerError, match="found"):
        unpack_spans(b'[["sleep","x",0,1]]', "n1")


def test_the_server_says_what_each_rank_holds(cluster, tiny):
    doing = cluster(tiny.folder, ranks=3).engine.doing()
    assert sum(one["kv_heads"] for one in doing.values()) == 3
    assert all(one["memory_bytes"] > 0 for one in doing.values())
