"""Energy: integration against laws, golden logs against hand-computed joules, meters against fake trees."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import profile_meters
from edge_runtime.profile_energy import (
    EnergyError,
    Sample,
    count_dropped,
    integrate,
    measured_energy,
    parse_meter,
    stated_energy,
)
from edge_runtime.profile_meters import PowercapCounter, find_meter, powercap_zones, read_rails, total_of
from edge_runtime.profile_tegrastats import parse_line, read_log

GOLDEN = Path(__file__).parent.parent / "golden" / "tegrastats"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_golden_logs_give_the_joules_computed_by_hand(family):
    wanted = EXPECTED[family]
    samples = read_log((GOLDEN / f"{family}.log").read_text().splitlines(), interval_s=wanted["interval_s"])
    idle, active = integrate(samples, *wanted["idle"]), integrate(samples, *wanted["active"])
    energy = measured_energy("tegrastats", idle, active, 1)
    assert energy.mj_per_run / 1000 == pytest.approx(wanted["joules"], rel=1e-6)
    assert energy.dropped == wanted["dropped"]


@given(
    watts=st.lists(st.floats(0, 200), min_size=2, max_size=40),
    period=st.sampled_from([0.01, 0.1, 1.0]),
    share=st.floats(0.1, 0.9),
)
def test_energy_of_two_windows_is_the_energy_of_both_together(watts, period, share):
    samples = [Sample(index * period, value) for index, value in enumerate([*watts, *watts, *watts])]
    end = samples[-1].time_s
    middle = samples[max(2, min(len(samples) - 3, int(share * len(samples))))].time_s
    parts = integrate(samples, 0, middle).joules + integrate(samples, middle, end).joules
    assert parts == pytest.approx(integrate(samples, 0, end).joules, rel=1e-9, abs=1e-9)


@given(idle=st.floats(0, 50), active=st.floats(0, 50), seconds=st.integers(2, 60), runs=st.integers(1, 1000))
def test_constant_power_gives_power_times_time_and_idle_is_subtracted(idle, active, seconds, runs):
    quiet = integrate([Sample(t, idle) for t in range(seconds + 1)], 0, seconds)
    busy = integrate([Sample(t, active) for t in range(seconds + 1)], 0, seconds)
    energy = measured_energy("test", quiet, busy, runs)
    assert energy.mj_per_run == pytest.approx(max(0.0, 1000 * (active - idle) * seconds / runs), abs=1e-6)


def test_dropped_samples_are_counted_and_bridged():
    samples = [Sample(t, 10 + t) for t in range(20) if t not in (7, 8)]
    whole = integrate(samples, 0, 19)
    assert whole.dropped == 2
    assert whole.joules == pytest.approx(10 * 19 + 19 * 19 / 2)


def test_samples_missing_at_the_edges_count_too():
    assert count_dropped([3.0, 4.0, 5.0], 0.0, 8.0) == 6


@pytest.mark.parametrize(
    "samples",
    [[], [Sample(0, 1)], [Sample(t, 1) for t in (0, 1, 2, 9)], [Sample(0, 1), Sample(1, float("nan")), Sample(2, 1)]],
)
def test_too_few_samples_or_too_many_missing_give_no_figure(samples):
    with pytest.raises(EnergyError):
        integrate(samples, 0, 9)


@pytest.mark.parametrize(
    ("line", "total", "heat"),
    [
        ("RAM 1/2MB CPU [1%@2] CPU@37.5C PMIC@100C POM_5V_IN 2003/2658 POM_5V_GPU 40/40", 2.003, 37.5),
        ("RAM 1/2MB VDD_IN 4800mW/4700mW VDD_SOC 1350mW/1350mW tj@46.5C", 4.8, 46.5),
        (
            "RAM 1/2MB gpu@50C VDD_GPU_SOC 3000mW/3000mW VDD_CPU_CV 1000mW/1000mW VIN_SYS_5V0 2500mW/2500mW",
            6.5,
            50.0,
        ),
        ("VDD_GPU -392mW/-392mW/-10mW VDD_CPU_SOC_MSS 3924mW/3835mW/3924mW VIN 15004mW/15096mW/15096mW", 15.004, None),
        ("GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889 AO@-256C", 3.113, None),
    ],
)
def test_lines_of_every_family_give_the_module_s_power(line, total, heat):
    reading = parse_line(line)
    assert reading.total_w == pytest.approx(total)
    assert reading.temperature_c == heat


@given(st.text(max_size=300))
def test_any_text_is_a_reading_or_none(text):
    reading = parse_line(text)
    assert reading is None or reading.rails


def test_a_log_without_rails_is_refused():
    with pytest.raises(EnergyError, match="power rails"):
        read_log(["RAM 1/2MB", ""], interval_s=1.0)


def test_stated_figures_are_labelled_and_not_measured():
    energy = stated_energy("idle=2.7,active=4.1,tx=5.0", 10.0)
    assert (energy.origin, energy.provider, energy.tx_w) == ("stated", "stated", 5.0)
    assert energy.mj_per_run == pytest.approx(14.0)


@pytest.mark.parametrize(
    "text", ["", "idle=1", "idle=2,active=1", "idle=a,active=3", "idle=nan,active=3", "idle=1,active=2,idle=1", "w=3"]
)
def test_wrong_stated_figures_are_refused(text):
    with pytest.raises(EnergyError, match="idle=W"):
        stated_energy(text, None)


def test_a_usb_meter_s_log_in_volts_and_milliamperes():
    lines = ["Timestamp,Voltage (V),Current (mA)", "0,5.0,400", "1,5.0,500", "broken", "3,5.0,500", "2,5.0,x"]
    assert parse_meter(lines, "log") == [Sample(0, 2.0), Sample(1, 2.5), Sample(3, 2.5)]


def test_a_usb_meter_s_log_in_watts_with_iso_times():
    lines = ["time,power_mw", "2026-11-23T10:00:00Z,2500", "2026-11-23T10:00:01Z,2600"]
    samples = parse_meter(lines, "log")
    assert [one.watts for one in samples] == [2.5, 2.6]
    assert samples[1].time_s - samples[0].time_s == 1.0


def test_a_log_without_the_columns_is_refused():
    with pytest.raises(EnergyError, match="columns"):
        parse_meter(["a,b", "1,2"], "log")


def write_tree(root, files):
    for relative, text in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_ina3221_of_an_orin_through_hwmon(tmp_path):
    folder = "sys/class/hwmon/hwmon3"
    rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 960, "in2_label": "VDD_SOC"}
    more = {"in2_input": 5000, "curr2_input": 270, "name": "ina3221", "in7_label": "sum of shunt voltages"}
    write_tree(tmp_path, {f"{folder}/{name}": text for name, text in {**rails, **more}.items()})
    write_tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "pwmfan"})
    assert read_rails(tmp_path) == pytest.approx({"VDD_IN": 4.8, "VDD_SOC": 1.35})
    assert total_of(read_rails(tmp_path)) == pytest.approx(4.8)
    assert find_meter(tmp_path).name == "ina3221"


def test_ina3221_of_a_nano_through_the_driver_of_jetpack_4(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write_tree(tmp_path, {f"{folder}/rail_name_0": "POM_5V_IN", f"{folder}/in_power0_input": 2003})
    write_tree(tmp_path, {f"{folder}/rail_name_1": "POM_5V_GPU", f"{folder}/in_power1_input": 40})
    assert total_of(read_rails(tmp_path)) == pytest.approx(2.003)


def test_powercap_counts_microjoules_and_wraps(tmp_path):
    folder = "sys/class/powercap/intel-rapl:0"
    write_tree(tmp_path, {f"{folder}/name": "package-0", f"{folder}/max_energy_range_uj": 10_000_000})
    write_tree(tmp_path, {f"{folder}/energy_uj": 9_000_000})
    write_tree(tmp_path, {"sys/class/powercap/intel-rapl:0:0/name": "core"})
    zones = powercap_zones(tmp_path)
    now = iter([0.0, 2.0])
    counter = PowercapCounter(zones, clock=lambda: next(now))
    assert counter() is None
    write_tree(tmp_path, {f"{folder}/energy_uj": 3_000_000})
    assert counter() == pytest.approx(2.0)
    assert find_meter(tmp_path).name == "powercap"


def test_no_meter_is_no_figure(tmp_path):
    assert find_meter(tmp_path) is None


def test_a_meter_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_meters, "_END_S", 0.2)
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/bash\ntrap '' TERM\necho ready\nwhile :; do read -t 0.05 < /dev/zero; done\n")
    program.chmod(0o755)
    meter = profile_meters.TegrastatsMeter(str(program))
    meter.start()
    assert meter.stop() == []
    assert meter._process.returncode is not None
    assert meter._process.stdout.closed
