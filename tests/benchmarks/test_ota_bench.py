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


def test_attacks_are_counted_by_their_named_error(workshop, monkeypatch):
    monkeypatch.setattr(bench_ota, "EACH", 2)
    assert bench_ota.refusals(workshop, lambda n: workshop.make(counter=n), "RollbackError") == 100
    assert bench_ota.refusals(workshop, lambda n: workshop.make(counter=n), "WrongKeyError") == 0
    assert bench_ota.refusals(workshop, lambda n: workshop.make(counter=2000 + n), "RollbackError") == 0


def test_the_cutter_cuts_where_it_says(tmp_path):
    cutter = bench_ota.Cutter(3)
    path = tmp_path / "a"
    path.touch()
    with cutter.hooked():
        path.rename(tmp_path / "b")
        with pytest.raises(bench_ota.PowerCut):
            (tmp_path / "b").replace(path)
    assert (tmp_path / "b").exists()


def test_a_refusal_counts_by_its_own_name_alone(tmp_path):
    def make(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        return SimpleNamespace(folder=folder, number=number)

    said = {0: "WrongKeyError", 1: "RollbackError", 2: None, 3: "WrongKeyError"}
    kinds = (BadUpdates("x", "WrongKeyError", make),)
    (row,) = refusal_rows(kinds, lambda bad: said[bad.number], each=4, of_what="agent")
    assert (row["value"], row["bar"]) == (50, 100)
