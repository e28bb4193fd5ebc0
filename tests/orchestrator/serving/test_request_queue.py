"""Laws of the queue, the batches and the fair shares: pure, no clock."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.request_queue import Request, RequestQueue, batch_due_at
from orchestrator.serving.fair_share import FairShare

KEYS = ("aa" * 8, "bb" * 8)


def request(order, *, deadline, key=KEYS[0], received=0.0):
    return Request(deadline, order, received, bytes(16), memoryview(b""), "t", key, 0)


requests = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(KEYS)).map(lambda pair: (float(pair[0]), pair[1])), max_size=30
)


@given(requests, st.integers(1, 40), st.integers(1, 8), st.floats(0, 50), st.floats(0, 10))
def test_every_request_leaves_the_queue_once_and_none_too_late(entries, limit, batch_limit, now, need):
    queue = RequestQueue(limit)
    needs = {KEYS[1]: need}
    refused, served, hopeless = [], [], []
    for order, (deadline, key) in enumerate(entries):
        one = queue.push(request(order, deadline=deadline, key=key))
        if one is not None:
            refused.append(one)
        assert len(queue) <= limit
    while len(queue):
        batch, late = queue.take(now, limit=batch_limit, needs_s=needs)
        hopeless += late
        served += batch
        assert len(batch) <= batch_limit
        assert len({one.key for one in batch}) <= 1
        assert [one.deadline for one in batch] == sorted(one.deadline for one in batch)
    everything = [one.order for one in refused + served + hopeless]
    assert sorted(everything) == list(range(len(entries)))
    assert all(one.deadline > now + needs.get(one.key, 0) for one in served)
    assert all(one.deadline <= now + needs.get(one.key, 0) for one in hopeless)


def test_a_batch_begins_with_the_most_urgent_request_and_leaves_the_other_models():
    queue = RequestQueue(10)
    for order, (deadline, key) in enumerate([(5.0, KEYS[0]), (1.0, KEYS[1]), (3.0, KEYS[0]), (4.0, KEYS[1])]):
        queue.push(request(order, deadline=deadline, key=key))
    batch, _ = queue.take(0.0, limit=3)
    assert [one.deadline for one in batch] == [1.0, 4.0]
    assert queue.first is not None
    assert queue.first.deadline == 3.0
    assert queue.count(KEYS[0]) == 2


@given(st.floats(0, 10), st.floats(0.001, 5), st.floats(0, 1), st.floats(0, 1))
def test_a_batch_never_waits_longer_than_its_most_urgent_deadline_allows(received, budget, wait, need):
    first = request(0, deadline=received + budget, received=received)
    due = batch_due_at(first, wait_s=wait, needs_s=need)
    assert due <= received + wait
    assert due + need <= first.deadline + 1e-9


@given(st.floats(0.5, 50), st.integers(1, 20), st.lists(st.floats(0, 2), min_size=1, max_size=60))
def test_a_device_never_gets_more_than_its_rate_and_burst(rate, burst, pauses):
    share, now, taken = FairShare(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        taken += share.allows("t/d", now)
        assert taken <= burst + rate * now + 1e-6


def test_one_greedy_device_takes_nothing_from_another_and_memory_is_bounded():
    share = FairShare(1.0, 2, devices=10)
    assert [share.allows("t/greedy", 0.0) for _ in range(4)] == [True, True, False, False]
    assert share.allows("t/other", 0.0)
    for number in range(50):
        share.allows(f"t/{number}", 0.0)
    assert len(share) == 10
    assert all(FairShare(0, 1).allows("t/d", 0.0) for _ in range(100))
