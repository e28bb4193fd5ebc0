"""Which cut the benches take for the head of Lite0."""

import pytest

from benchmarks.lite0 import CommandError, choose_cut


def cut(name, *, head, payload, total=100, tensors=1):
    return {
        "tensors": [{"name": f"{name}{index}"} for index in range(tensors)],
        "head_macs": head,
        "tail_macs": total - head,
        "payload_bytes": payload,
    }


def test_the_smallest_payload_within_the_first_part_of_the_work():
    cuts = [cut("a", head=10, payload=9), cut("b", head=50, payload=5), cut("c", head=90, payload=1)]
    assert choose_cut(cuts) == "b0"


def test_no_head_without_work_and_no_cut_at_several_tensors():
    with pytest.raises(CommandError, match="none of 2"):
        choose_cut([cut("input", head=0, payload=1), cut("two", head=20, payload=1, tensors=2)])
