import random

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.answer import Breakdown
from edge_runtime.clock_offset import ClockOffset, Exchange


def exchange(at, offset, up, down, *, up_bytes=30_000, down_bytes=1000):
    return Exchange(at, at + offset + up, up + down, up_bytes, down_bytes)


@given(st.floats(-1e6, 1e6), st.floats(0.001, 0.2), st.floats(0.5e5, 1e7))
def test_the_ways_are_found_whatever_the_clocks_say(offset, rtt, rate):
    clock, rng = ClockOffset(), random.Random(0)
    for index in range(20):
        late_up, late_down = (rng.choice([0.0, 0.0, rng.uniform(0, 0.1)]) for _ in range(2))
        up, down = rtt / 2 + 30_000 / rate + late_up, rtt / 2 + 1000 / rate + late_down
        found = clock.divide(exchange(float(index), offset, up, down), round_trip_s=rtt)
        assert abs(sum(found) - up - down) < 1e-6
        if index > 10:
            assert abs(found[0] - up) < 0.002 + 1e-9 * abs(offset)


def test_what_delays_one_way_is_shown_on_that_way():
    clock = ClockOffset()
    for index in range(5):
        clock.divide(exchange(float(index), 1000.0, 0.02, 0.01), round_trip_s=0.02)
    up, down = clock.divide(exchange(6.0, 1000.0, 0.07, 0.01), round_trip_s=0.02)
    assert up - down > 0.05


def test_an_old_offset_is_forgotten_as_clocks_drift():
    clock = ClockOffset()
    clock.divide(exchange(0.0, 5.0, 0.001, 0.001), round_trip_s=0.002)
    up, down = clock.divide(exchange(60.0, 5.5, 0.01, 0.01, up_bytes=1, down_bytes=1), round_trip_s=0.02)
    assert abs(up - down) < 1e-6


def test_stages_and_what_is_unaccounted_add_up_to_the_total():
    found = Breakdown(preprocess_ms=1, head_ms=2, uplink_ms=3, downlink_ms=1, tail_ms=2, total_ms=10)
    assert found.link_ms == 4
    assert found.unaccounted_ms == 1
    stages = found.as_dict()
    assert sum(value for name, value in stages.items() if name != "total_ms") == stages["total_ms"]
    assert list(stages) == [
        *(f"{name}_ms" for name in ("preprocess", "head", "encode", "serialise", "uplink", "queue", "decode", "tail")),
        *(f"{name}_ms" for name in ("downlink", "postprocess", "waited", "local", "unaccounted", "total")),
    ]
