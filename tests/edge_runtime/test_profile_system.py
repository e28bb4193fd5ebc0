"""What fake trees of boards say of themselves."""

import pytest

from edge_runtime import profile_system as system
from edge_runtime.profile_stats import CpuTimes, percentiles, repeat_cov, usage

PI_CPU = "CPU implementer\t: 0x41\nCPU part\t: {}\n"
MEMORY = "MemTotal:        {} kB\n"


@pytest.fixture
def tree(tmp_path):
    """Write files below a root: `tree({"proc/x": "text"})` gives the root."""

    def write(files):
        for relative, text in files.items():
            path = tmp_path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def pi(model, part, memory_kb, throttled):
    firmware = "sys/devices/platform/soc/soc:firmware/get_throttled"
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/cpuinfo": 4 * PI_CPU.format(part),
        "proc/meminfo": MEMORY.format(memory_kb),
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/devices/system/cpu/cpufreq/ignored": "",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "61823\n",
        firmware: throttled,
    }


@pytest.mark.parametrize(
    ("model", "part", "memory", "board", "core"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "0xd03", 948_000, "rpi-3b-plus", "Cortex-A53"),
        ("Raspberry Pi 4 Model B Rev 1.4", "0xd08", 3_884_000, "rpi-4b-4gb", "Cortex-A72"),
        ("Raspberry Pi 5 Model B Rev 1.0", "0xd0b", 8_256_000, "rpi-5-8gb", "Cortex-A76"),
        ("Raspberry Pi 5 Model B Rev 1.1", "0xd0b", 16_600_000, "rpi-5", "Cortex-A76"),
    ],
)
def test_a_raspberry_pi_is_known_by_its_name_and_memory(tree, model, part, memory, board, core):
    root = tree(pi(model, part, memory, "0x0\n"))
    assert system.board_id(root) == board
    assert system.cpu_name(root) == core
    assert system.machine_name(root) == model
    state = system.read_state(root)
    assert (state.clock_hz, state.temperature_c, state.throttled_now) == (1_500_000_000, 61.823, ())
    assert system.governor(root) == "ondemand"


def test_a_weak_power_supply_is_seen(tree):
    before = system.read_state(tree(pi("Raspberry Pi 4 Model B", "0xd08", 900_000, "50000\n")))
    assert before.throttled_now == ()
    after = system.read_state(tree(pi("Raspberry Pi 4 Model B", "0xd08", 900_000, "50005\n")))
    assert system.throttling(before, after) == ("under-voltage", "throttled")


def test_what_happened_between_two_readings_is_seen_although_it_is_over(tree):
    before = system.read_state(tree(pi("Raspberry Pi 5", "0xd0b", 900_000, "0x0\n")))
    after = system.read_state(tree(pi("Raspberry Pi 5", "0xd0b", 900_000, "0x20000\n")))
    assert system.throttling(before, after) == ("frequency capped",)


def test_what_happened_before_the_run_is_not_held_against_it(tree):
    state = system.read_state(tree(pi("Raspberry Pi 5", "0xd0b", 900_000, "0xf0000\n")))
    assert system.throttling(state, state) == ()


def test_a_jetson_s_power_mode_alarms_and_sensors(tree):
    files = {
        "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": 6 * PI_CPU.format("0xd42"),
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=7W >\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "46500\n",
        "sys/class/thermal/thermal_zone1/type": "tj-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "47125\n",
        "sys/class/thermal/thermal_zone2/type": "cv0-soc-thermal\n",
        "sys/class/thermal/thermal_zone2/temp": "-256000\n",
        "sys/class/thermal/thermal_zone3/type": "PMIC-Die\n",
        "sys/class/thermal/thermal_zone3/temp": "100000\n",
        "sys/class/hwmon/hwmon5/oc3_event_cnt": "2\n",
    }
    root = tree(files)
    assert system.board_id(root) == "jetson-orin-nano-8gb"
    assert system.cpu_name(root) == "Cortex-A78AE"
    assert system.power_mode(root) == "7W"
    before = system.read_state(root)
    assert before.temperature_c == 47.125
    after = system.read_state(tree({"sys/class/hwmon/hwmon5/oc3_event_cnt": "3\n"}))
    assert system.throttling(before, after) == ("over-current alarm oc3",)


def test_a_tx2_has_two_kinds_of_cores(tree):
    denver = "CPU implementer\t: 0x4e\nCPU part\t: 0x003\n"
    root = tree({"proc/device-tree/model": b"quill\0", "proc/cpuinfo": PI_CPU.format("0xd07") + denver})
    assert system.board_id(root) == "jetson-tx2"
    assert system.cpu_name(root) == "Cortex-A57 + Denver 2"


def test_a_machine_that_says_nothing_gives_null(tree):
    root = tree({})
    state = system.read_state(root)
    assert (state.clock_hz, state.temperature_c, state.throttled_now, state.counters) == (None, None, (), {})
    unknown = [system.governor(root), system.power_mode(root), system.cpu_times(root), system.load_1m(root)]
    assert unknown == [None] * 4
    assert system.peak_rss_bytes(root) is None


def test_files_of_nonsense_give_null(tree):
    root = tree(
        {"proc/stat": b"cpu  1 2\n", "proc/loadavg": b"\xff\xfe", "sys/class/thermal/thermal_zone0/temp": "hot"}
    )
    assert system.cpu_times(root) is None
    assert system.load_1m(root) is None
    assert system.read_state(root).temperature_c is None


def test_peak_memory_and_cpu_times_are_read(tree):
    root = tree({"proc/self/status": "VmHWM:\t   2048 kB\n", "proc/stat": "cpu  10 1 5 80 2 1 1 7 0 0\n"})
    assert system.peak_rss_bytes(root) == 2 << 20
    assert system.cpu_times(root) == CpuTimes(busy=18, idle=82, steal=7)


def test_shares_of_other_processes_and_of_the_hypervisor():
    found = usage(CpuTimes(150, 30, 20), own_s=1.0, ticks_per_s=100)
    assert (found.other, found.steal) == (0.25, 0.1)
    assert usage(CpuTimes(0, 0, 0), own_s=0.0, ticks_per_s=100) is None


def test_percentiles_are_ordered_values_that_occurred():
    found = percentiles([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.p50, found.p90, found.p99, found.runs, found.mean) == (3.0, 5.0, 5.0, 5, 3.0)


def test_repeats_that_differ_show_in_the_coefficient():
    assert repeat_cov([1.0] * 50) == 0.0
    assert repeat_cov([1.0] * 25 + [2.0] * 25) > 0.05
    assert repeat_cov([1.0] * 20) is None
