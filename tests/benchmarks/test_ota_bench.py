import pytest

from benchmarks import bench_ota
from benchmarks.update_rows import BadUpdates, refusal_rows
from edge_runtime.slots import SlotStore


@pytest.fixture
def workshop(tmp_path):
    return bench_ota.Workshop(tmp_path)


def test_a_cut_device_is_found_out_when_it_runs_something_else(workshop):
    artefact = workshop.make(counter=1, key=workshop.stranger)
    state = workshop.new_state()
    store = SlotStore(state)
    store.replace(store.active.__class__(whole=artefact.id))
    assert bench_ota.verdict(state, {artefact.id}) is not None
    assert bench_ota.verdict(workshop.new_state(), {"x"}) == "None runs"


def test_attacks_are_counted_by_their_named_error(workshop):
    kinds = (
        BadUpdates("older", "RollbackError", lambda n: workshop.make(counter=n)),
        BadUpdates("other", "WrongKeyError", lambda n: workshop.make(counter=n)),
        BadUpdates("newer", "RollbackError", lambda n: workshop.make(counter=2000 + n)),
    )
    rows = refusal_rows(kinds, bench_ota.taker(workshop), each=2, of_what="model")
    assert [row["value"] for row in rows] == [100, 0, 0]


def test_the_cutter_cuts_where_it_says(tmp_path):
    cutter = bench_ota.Cutter(3)
    path = tmp_path / "a"
    path.touch()
    with cutter.hooked():
        path.rename(tmp_path / "b")
        with pytest.raises(bench_ota.PowerCut):
            (tmp_path / "b").replace(path)
    assert (tmp_path / "b").exists()
