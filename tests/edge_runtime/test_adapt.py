"""Simulated series of links: a step, jitter at every rate, and requests with deadlines."""

import math
import random

import pytest

from device_profiles.link import Link
from device_profiles.plan_table import Choice, PlanTable, check_plan_table
from edge_runtime.adapt import Adapter, Rules
from edge_runtime.link_estimate import LinkEstimate, Transfer, TransferError

MBIT = 125e3
CHOICES = (
    Choice(name="local", kind="local", device_ms=60.0, device_p95_ms=66.0),
    Choice(name="deep split", kind="split", device_ms=25.0, device_p95_ms=28.0, host_ms=4.0, host_p95_ms=5.0,
           up_bytes=3_000, down_bytes=100),
    Choice(name="shallow split", kind="split", device_ms=5.0, device_p95_ms=6.0, host_ms=8.0, host_p95_ms=9.0,
           up_bytes=30_000, down_bytes=100),
)  # fmt: skip
BASE = Link(up_bytes_per_s=20 * MBIT, down_bytes_per_s=20 * MBIT, rtt_ms=6.0, jitter_ms=1.0)


def _table(deadline_ms=None):
    rates = tuple(0.1 * MBIT * 10 ** (step / 8) for step in range(25))
    rtts = (5.0, 20.0, 80.0)

    def best(rate, rtt):
        link = BASE.at_rate(rate, rtt)
        good = [c for c in CHOICES if deadline_ms is None or c.latency_p95_ms(link) <= deadline_ms] or CHOICES
        return CHOICES.index(min(good, key=lambda choice: choice.latency_ms(link)))

    cells = tuple(tuple(best(rate, rtt) for rtt in rtts) for rate in rates)
    return check_plan_table(
        PlanTable(model="m", device="d", host="h", rates_bytes_per_s=rates, rtts_ms=rtts, choices=CHOICES, cells=cells,
                  link=BASE, deadline_ms=deadline_ms)
    )  # fmt: skip


def _send(adapter, link, rng, *, jitter=0.0, choice=None):
    """One request over the true link; returns its time on the link."""
    choice = choice or adapter.current
    true = link.at_rate(link.up_bytes_per_s * rng.uniform(1 - jitter, 1 + jitter))
    ms = choice.away_ms(true)
    if ms:
        adapter.finished(up_bytes=choice.up_bytes, down_bytes=choice.down_bytes, link_ms=ms)
    return ms


@pytest.mark.parametrize("requests", [1, 5])
@pytest.mark.parametrize("deadline_ms", [None, 100.0])
def test_a_step_from_20_to_1_mbit_gives_a_new_plan_within_3_windows(requests, deadline_ms):
    adapter, rng = Adapter(_table(deadline_ms)), random.Random(1)
    for _ in range(20):
        for _ in range(requests):
            _send(adapter, BASE, rng, jitter=0.2)
        assert adapter.end_window() is None
    assert adapter.current.name == "shallow split"
    slow = BASE.at_rate(1 * MBIT)
    taken = 0
    for window in range(1, 4):
        for _ in range(requests):
            _send(adapter, slow, rng, jitter=0.2)
        if adapter.end_window() is not None:
            taken = window
            break
    assert 1 <= taken <= 3
    assert adapter.current.name == "deep split"


def test_back_to_a_fast_link_within_3_windows_after_the_rest():
    adapter, rng = Adapter(_table()), random.Random(2)
    for link, expected in ((BASE.at_rate(MBIT), "deep split"), (BASE.at_rate(60 * MBIT), "shallow split")):
        for _ in range(8):
            _send(adapter, link, rng)
            adapter.end_window()
        assert adapter.current.name == expected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deadline_ms", [None, 70.0, 100.0])
def test_no_flapping_at_20_percent_jitter_whatever_the_rate(seed, deadline_ms):
    rng = random.Random(seed)
    for step in range(41):  # 0.5 .. 50 Mbit/s, through every break-even
        link = BASE.at_rate(0.5 * MBIT * 10 ** (step / 20))
        adapter = Adapter(_table(deadline_ms))
        changes = []
        for window in range(300):
            choice = adapter.current if adapter.current.kind != "local" else CHOICES[1]  # a probe of that size
            _send(adapter, link, rng, jitter=0.2, choice=choice)
            if adapter.end_window() is not None:
                changes.append(window)
        settled = [window for window in changes if window >= 10]
        assert len(settled) <= 1, (link, changes)


def test_no_deadline_is_missed_after_the_step():
    """Requests run against the true link with the guard and the local fallback; at most one plan change."""
    deadline = 140.0  # a remote plan of 60 ms and the fallback of 66 ms after one another
    adapter, rng = Adapter(_table(deadline)), random.Random(3)
    missed, local, changes = 0, 0, 0
    for window in range(40):
        link = BASE if window < 20 else BASE.at_rate(1 * MBIT)
        for _ in range(4):
            if adapter.route() == "local":
                local += 1
                _send(adapter, link, rng, jitter=0.2, choice=CHOICES[1])  # a probe keeps the estimate alive
                continue
            choice, latest = adapter.current, adapter.start_fallback_at_ms(remaining_ms=deadline)
            if choice.kind == "local":
                continue
            true = link.at_rate(link.up_bytes_per_s * rng.uniform(0.8, 1.2))
            total = choice.latency_ms(true)
            assert latest > 0
            waited = choice.away_ms(true)
            if total > latest:  # the fallback starts in time and answers; the link is seen as that slow at least
                local += 1
                waited = latest - choice.device_ms
                total = latest + CHOICES[0].device_p95_ms
            adapter.finished(up_bytes=choice.up_bytes, down_bytes=choice.down_bytes, link_ms=waited)
            missed += total > deadline
        changes += adapter.end_window() is not None
    assert missed == 0
    assert changes == 1
    assert 0 < local <= 12  # of 160: only while the new link was being learnt


STREAM = (
    Choice(name="local", kind="local", device_ms=200.0, device_p95_ms=210.0),
    *(
        Choice(name=f"{layers} layers", kind="split", device_ms=20.0, device_p95_ms=22.0, host_ms=4.0, host_p95_ms=5.0,
               up_bytes=size, down_bytes=100, layers=layers)
        for layers, size in ((1, 2_000), (2, 8_000), (3, 30_000))
    ),
)  # fmt: skip


def _accurate(deadline_ms):
    """Of the stream as many layers as keep the deadline; the fewest where none do."""
    rates = tuple(0.1 * MBIT * 10 ** (step / 8) for step in range(25))

    def best(rate):
        link = BASE.at_rate(rate, BASE.rtt_ms)
        return max([n for n in (1, 2, 3) if STREAM[n].latency_p95_ms(link) <= deadline_ms], default=1)

    return check_plan_table(
        PlanTable(model="m", device="d", host="h", rates_bytes_per_s=rates, rtts_ms=(BASE.rtt_ms,), choices=STREAM,
                  cells=tuple((best(rate),) for rate in rates), link=BASE, deadline_ms=deadline_ms, objective="accuracy")
    )  # fmt: skip


def test_a_table_for_accuracy_sends_more_layers_on_a_better_link_though_they_take_longer():
    adapter, rng = Adapter(_accurate(70.0)), random.Random(1)
    assert adapter.current.name == "3 layers"
    seen = []
    for rate in (1 * MBIT, 20 * MBIT):
        changes = []
        for window in range(12):
            _send(adapter, BASE.at_rate(rate), rng, jitter=0.1)
            change = adapter.end_window()
            if change is not None:
                changes.append((window, change.plan.name, change.why))
        seen.append(changes)
    (down,), (up,) = seen  # one change each, then it stays
    assert down[0] <= 2
    assert down[1] == "1 layers"
    assert "would miss 70 ms" in down[2]
    assert up[1] == "3 layers"
    assert "better for accuracy" in up[2]


def _changes(step, seed, rules):
    """Of 40 windows behind the first 20, at a rate between grid points, with 20 % of jitter."""
    adapter, rng, changes = Adapter(_accurate(70.0), rules), random.Random(seed), 0
    for window in range(60):
        _send(adapter, BASE.at_rate(0.1 * MBIT * 10 ** (step / 8)), rng, jitter=0.2)
        changes += adapter.end_window() is not None and window >= 20
    return changes


def test_a_table_for_accuracy_does_not_flap_where_the_link_lies_between_two_plans():
    borders = (10.25, 10.5, 14.5, 14.75)
    assert max(_changes(step, seed, Rules()) for step in borders for seed in range(3)) <= 3
    loose = Rules(windows=1, rest=0)  # what the rules are for
    assert max(_changes(step, seed, loose) for step in borders for seed in range(3)) > 3


def test_a_table_for_accuracy_sends_least_where_nothing_keeps_the_deadline():
    adapter, rng = Adapter(_accurate(70.0)), random.Random(1)
    for _ in range(12):
        _send(adapter, BASE.at_rate(0.1 * MBIT), rng, jitter=0.1)
        adapter.end_window()
    assert adapter.current.name == "1 layers"
    assert adapter.current.latency_p95_ms(adapter.link) > 70.0


def test_guard_sends_a_request_home_when_too_little_time_is_left():
    adapter = Adapter(_table(100.0))
    assert adapter.route() == "plan"
    assert adapter.route(remaining_ms=10.0) == "local"
    assert adapter.start_fallback_at_ms(remaining_ms=100.0) == pytest.approx(100 - 66 - Rules().guard_ms)


def test_a_window_without_transfers_changes_nothing():
    adapter = Adapter(_table())
    before = adapter.link
    assert adapter.end_window() is None
    assert adapter.link == before


def test_estimate_recovers_the_true_link():
    estimate = LinkEstimate(BASE)
    true = BASE.at_rate(5 * MBIT)
    for _ in range(3):
        estimate.add(Transfer(20_000, 100, true.uplink_ms(20_000) + true.downlink_ms(100)))
        estimate.end_window()
    assert estimate.link.up_bytes_per_s == pytest.approx(5 * MBIT, rel=1e-6)
    for _ in range(40):
        estimate.add(Transfer(50, 50, 30.0))
        estimate.end_window()
    assert estimate.link.rtt_ms == pytest.approx(30, rel=0.01)


def test_small_transfers_show_that_a_link_is_not_slower_than_they_were():
    slow = BASE.at_rate(1_000)
    estimate = LinkEstimate(slow)

    def rate_after(*transfers):
        for one in transfers:
            estimate.add(one)
            assert estimate.end_window()
        return pytest.approx(estimate.link.up_bytes_per_s, rel=1e-6)

    given_up, fast, at_once = Transfer(300, 100, 4.0, False), Transfer(300, 100, 4.0), Transfer(300, 100, 0.004)
    assert rate_after(given_up, given_up) == 1_000  # it never crossed the link
    assert rate_after(fast) == 1_000  # one window is chance
    assert rate_after(fast) == 100_000
    assert rate_after(at_once, at_once) == 400_000  # no clock is so fine
    assert rate_after(Transfer(300, 100, 400.0)) == 1_000  # a slow link again, or a long round trip: not told
    big = Transfer(3_000, 100, slow.uplink_ms(3_000) + slow.downlink_ms(100))
    rate_after(fast, fast, big, big, big)
    assert estimate.link.up_bytes_per_s < 1_500


@pytest.mark.parametrize("bad", [(-1, 0, 1.0), (0, -1, 1.0), (1, 1, 0.0), (1, 1, math.nan), (1, 1, math.inf)])
def test_impossible_transfers_are_refused(bad):
    with pytest.raises(TransferError):
        Transfer(*bad)


def test_a_table_for_the_p95_is_followed_where_the_median_gains_nothing():
    steady = (
        Choice(name="local", kind="local", device_ms=50.0, device_p95_ms=300.0),
        Choice(
            name="split", kind="split", device_ms=50.0, device_p95_ms=55.0, host_ms=4.0, host_p95_ms=5.0, up_bytes=100
        ),
    )
    table = check_plan_table(
        PlanTable(model="m", device="d", host="h", rates_bytes_per_s=(MBIT / 20, MBIT), rtts_ms=(1.0,), choices=steady,
                  cells=((0,), (1,)), link=BASE, objective="p95")
    )  # fmt: skip
    adapter, rng = Adapter(table), random.Random(1)
    adapter.number = 0
    for _ in range(10):
        for _ in range(3):
            _send(adapter, BASE, rng, choice=steady[1])
        adapter.end_window()
    assert adapter.current.name == "split"
