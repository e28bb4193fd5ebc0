from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.offload import Breaker, Estimate, Pending, Ticket, remote_wait_s
from edge_runtime.wire import Reply, Status

EMPTY = memoryview(b"")


@given(st.lists(st.tuples(st.sampled_from(["add", "answer", "give up", "lost"]), st.integers(0, 5)), max_size=60))
def test_every_request_ends_exactly_once_whatever_happens_in_which_order(events):
    pending, ended, opened = Pending(limit=4), {}, set()
    for event, number in events:
        identity = bytes([number])
        if event == "add" and identity not in opened:

            def end(identity=identity):
                ended[identity] = ended.get(identity, 0) + 1

            room = len(opened) - len(ended) < 4
            assert pending.add(Ticket(identity, 0.0, end)) == room
            if room:
                opened.add(identity)
        elif event == "answer":
            was_open = identity in opened and identity not in ended
            assert pending.answer(Reply(identity, Status.OK), EMPTY) == was_open
        elif event == "lost":
            still_open = len(opened) - len(ended)
            assert pending.give_up_all() == still_open
        elif event == "give up" and pending.give_up(identity):
            ended[identity] = ended.get(identity, 0) + 1
    assert all(count == 1 for count in ended.values())
    assert len(pending) == len(opened) - len(ended)


def test_an_answer_after_the_end_is_counted_and_dropped():
    pending = Pending(limit=1)
    pending.add(Ticket(b"a", 0.0, lambda: None))
    assert pending.give_up(b"a")
    assert not pending.answer(Reply(b"a", Status.OK), EMPTY)
    assert pending.late == 1
    assert len(pending) == 0


def test_the_breaker_opens_probes_once_and_closes_again():
    breaker = Breaker(failures=2, pause_s=1.0, max_pause_s=3.0)
    breaker.failed(0.0)
    assert breaker.allow(0.0)
    breaker.failed(0.0)
    assert not breaker.allow(0.9)
    assert breaker.allow(1.0)
    assert not breaker.allow(1.0), "one probe at a time"
    breaker.failed(1.0)
    assert not breaker.allow(2.9), "the pause has doubled"
    assert breaker.allow(3.0)
    breaker.succeeded()
    assert breaker.allow(3.0)
    assert not breaker.is_open
    breaker.failed(3.0)
    breaker.failed(3.0)
    assert not breaker.allow(3.0)
    breaker.reset()
    assert breaker.allow(3.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=100))
def test_the_breaker_never_stays_open_for_longer_than_its_longest_pause(steps):
    breaker, now = Breaker(failures=3, pause_s=0.5, max_pause_s=4.0), 0.0
    for success, elapsed in steps:
        now += elapsed
        if breaker.allow(now):
            breaker.succeeded() if success else breaker.failed(now)
    assert breaker.allow(now + 4.0)


@given(st.lists(st.floats(0.001, 1.0), min_size=40, max_size=40), st.floats(0.001, 0.05))
def test_the_estimate_settles_above_a_steady_time_and_forgets_outliers(first, steady):
    estimate = Estimate(first[0])
    for seconds in [*first, *[steady] * 200]:
        estimate.add(seconds)
    assert steady * 0.99 <= estimate.upper_s <= steady * 1.05 + 1e-3
    estimate.add(10.0)
    for _ in range(200):
        estimate.relax()
    assert estimate.upper_s < steady * 1.2 + 1e-3


def test_the_fallback_keeps_its_share_of_the_deadline():
    assert remote_wait_s(10.0, 10.5, 0.2, margin_s=0.0) == 0.5 - 0.2
    assert remote_wait_s(10.0, 10.5, None, margin_s=0.1) == 0.5
    assert remote_wait_s(10.0, 10.1, 0.2, margin_s=0.0) < 0
