import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.link import Link, LinkError, parse_link
from device_profiles.plan_table import (
    Choice,
    PlanTable,
    PlanTableError,
    check_plan_table,
    dump_plan_table,
    parse_plan_table,
)

LOCAL = Choice(name="whole model here", kind="local", device_ms=50.0, device_p95_ms=55.0)
SPLIT = Choice(
    name="split at t", kind="split", device_ms=5.0, device_p95_ms=6.0, host_ms=2.0, host_p95_ms=3.0, up_bytes=10_000
)


def _table(**changes):
    values = {
        "model": "m", "device": "rpi-4b", "host": "linux-x86-64", "rates_bytes_per_s": (1e4, 1e6), "rtts_ms": (5.0, 50.0),
        "choices": (LOCAL, SPLIT), "cells": ((0, 0), (1, 0)), "link": parse_link("20mbit/15ms"), "deadline_ms": 80.0,
    }  # fmt: skip
    return PlanTable(**(values | changes))


def test_parse_link_reads_what_users_write():
    link = parse_link("20mbit:5mbit/15ms~4ms", per_message_ms=0.1)
    assert (link.up_bytes_per_s, link.down_bytes_per_s, link.rtt_ms, link.jitter_ms) == (2.5e6, 625e3, 15, 4)
    assert link.uplink_ms(2500) == pytest.approx(7.5 + 0.1 + 1.0)
    assert str(link) == "20mbit:5mbit/15ms~4ms"


@pytest.mark.parametrize(
    "text", ["", "20", "20mbit", "20mbit/15", "0mbit/15ms", "-1mbit/5ms", "nanmbit/1ms", "1.2.3mbit/1ms", "1mbit/1ms x"]
)
def test_text_that_is_no_link_is_refused(text):
    with pytest.raises(LinkError):
        parse_link(text)


@pytest.mark.parametrize(
    "bad", [{"up_bytes_per_s": 0.0}, {"rtt_ms": -1.0}, {"jitter_ms": math.nan}, {"down_bytes_per_s": math.inf}]
)
def test_impossible_links_are_refused(bad):
    with pytest.raises(LinkError):
        Link(**({"up_bytes_per_s": 1.0, "down_bytes_per_s": 1.0, "rtt_ms": 1.0} | bad))


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e9), st.integers(0, 10**6))
def test_latency_never_grows_with_the_rate(slow, fast, size):
    link = parse_link("1mbit/10ms")
    slow, fast = min(slow, fast), max(slow, fast)
    assert link.at_rate(fast).uplink_ms(size) <= link.at_rate(slow).uplink_ms(size) + 1e-9


def test_choice_latency_adds_its_parts():
    link = Link(up_bytes_per_s=1e6, down_bytes_per_s=1e6, rtt_ms=10, jitter_ms=4, per_message_ms=0.5)
    assert SPLIT.latency_ms(link) == pytest.approx(5 + 10 + 2 * 0.5 + 10 + 2)
    assert SPLIT.latency_p95_ms(link) == pytest.approx(6 + 10 + 2 * 0.5 + 10 + 4 + 3)
    assert LOCAL.latency_ms(link) == 50
    half = msgspec.structs.replace(SPLIT, remote_share=0.5)
    assert half.latency_ms(link) == pytest.approx(5 + 0.5 * (21 + 2))


def test_lookup_takes_the_nearest_point_and_clamps():
    table = check_plan_table(_table())
    assert table.lookup(9e5, 6) == 1
    assert table.lookup(1e9, 0) == 1
    assert table.lookup(9e4, 5) == 0
    assert table.lookup(1e6, 500) == 0
    for rate, rtt in ((0.0, 1.0), (math.nan, 1.0), (1.0, -1.0)):
        with pytest.raises(PlanTableError):
            table.lookup(rate, rtt)


def test_table_survives_the_file_and_ids_follow_the_content():
    table = _table()
    again = parse_plan_table(dump_plan_table(table))
    assert again == table
    assert b"layers" not in dump_plan_table(table)  # agents that know none take it
    stream = msgspec.structs.replace(table, choices=(LOCAL, msgspec.structs.replace(SPLIT, layers=2)))
    assert parse_plan_table(dump_plan_table(stream)) == stream
    assert again.table_id == table.table_id != _table(deadline_ms=81.0).table_id
    assert len(SPLIT.plan_id) == 16
    assert SPLIT.plan_id != msgspec.structs.replace(SPLIT, up_bytes=10_001).plan_id


@pytest.mark.parametrize(
    "bad",
    [
        {"schema": 2}, {"rates_bytes_per_s": ()}, {"rates_bytes_per_s": (2.0, 1.0)}, {"rtts_ms": (math.nan, 1.0)},
        {"cells": ((0, 0),)}, {"cells": ((0, 0), (2, 0))}, {"choices": ()},
        {"choices": (LOCAL, msgspec.structs.replace(SPLIT, device_ms=-1.0))},
        {"choices": (LOCAL, msgspec.structs.replace(SPLIT, remote_share=1.5))},
    ],
)  # fmt: skip
def test_bad_tables_are_refused(bad):
    with pytest.raises(PlanTableError):
        check_plan_table(_table(**bad))


def test_a_plan_whose_head_is_missing_gives_way_to_the_fastest_or_for_other_objectives_to_its_neighbour():
    few, many, all_of_it = (
        msgspec.structs.replace(SPLIT, name=name, up_bytes=size, device_ms=device)
        for name, size, device in (("few", 100, 9.0), ("many", 1000, 5.0), ("all", 4000, 5.0))
    )
    table = _table(
        choices=(LOCAL, few, many, all_of_it), rates_bytes_per_s=(1e3, 1e4, 1e5, 1e6), rtts_ms=(5.0,),
        cells=((0,), (1,), (2,), (3,)), deadline_ms=200.0,
    )  # fmt: skip
    assert table.restricted([0, 1, 3]).cells == ((0,), (1,), (1,), (2,))  # at 100 kB/s the few bytes are fastest
    accurate = msgspec.structs.replace(table, objective="accuracy")
    assert accurate.restricted([0, 1, 2]).cells == ((0,), (1,), (2,), (2,))  # not what is fastest, which is `few`
    assert accurate.restricted([0, 3]).cells == ((0,), (0,), (1,), (1,))  # 4000 B at 10 kB/s would be late
    assert accurate.restricted([2]).cells == ((0,),) * 4
    with pytest.raises(PlanTableError, match="Deploy its head"):
        table.restricted([])


def test_bad_bytes_are_refused():
    good = dump_plan_table(_table())
    for junk in (
        b"",
        b"{}",
        b"\xff",
        good.replace(b'"model"', b'"colour"', 1),
        good.replace(b'"rtt_ms": 15', b'"rtt_ms": -5'),
    ):
        with pytest.raises(PlanTableError):
            parse_plan_table(junk)
