"""A folder that holds ranks of another set, or of an earlier version: what stays, what is written again, what is served."""

import json

import pytest
from safetensors.torch import load_file, save_file

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import ShardError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.shard_set import read_index, read_set
from orchestrator.tensor_parallel.sharding import shard_checkpoint

NODES = (Node(name="a"), Node(name="b", address="127.0.0.1:1"))


class Stop(Exception):
    pass


def stop_behind(share):
    def stop(done, total):
        if done > total * share:
            raise Stop

    return stop


def another(tiny, folder):
    """A checkpoint of the same name and shape with other weights, and no chat template."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((tiny.folder / name).read_bytes())
    tensors = load_file(tiny.folder / "model.safetensors")
    save_file({name: values * 0.5 for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def without_ids(folder):
    for path in folder.glob("rank*.json"):
        values = json.loads(path.read_text())
        del values["set_id"]
        path.write_text(json.dumps(values))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("share", [0.3, 0.7])  # in the first rank, and behind it
def test_ranks_of_another_checkpoint_of_the_same_shape_are_written_again(share, tiny, tmp_path):
    with pytest.raises(Stop):
        shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path / "out", progress=stop_behind(share))
    assert (tmp_path / "out" / "rank0.bin").exists() == (share > 0.5)
    source = another(tiny, tmp_path / "b" / tiny.folder.name)
    made = shard_checkpoint(open_checkpoint(source), NODES, tmp_path / "out")
    assert made == shard_checkpoint(open_checkpoint(source), NODES, tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_finished_rank_of_another_set_is_not_served(tiny, tmp_path):
    made = shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path / "out")
    shard_checkpoint(open_checkpoint(another(tiny, tmp_path / "b")), NODES, tmp_path / "b-out")
    (tmp_path / "out" / "rank1.json").write_bytes((tmp_path / "b-out" / "rank1.json").read_bytes())
    with pytest.raises(ShardError, match=r"found another, of set .* Shard the checkpoint again"):
        read_index(tmp_path / "out", 1, made)


def test_a_set_of_an_earlier_version_is_served_and_not_trusted_when_it_is_cut_again(tiny, tmp_path, cluster):
    running = cluster(tiny.folder, ranks=2)
    without_ids(running.shards)
    running.engine.restart()
    assert len(running.engine.epoch.members) == 2
    shard_set = read_set(running.shards)
    assert read_index(running.shards, 1, shard_set).set_id is None
    shard_checkpoint(open_checkpoint(tiny.folder), running.engine.cluster.nodes, running.shards)
    assert read_index(running.shards, 1, shard_set).set_id == shard_set.set_id
