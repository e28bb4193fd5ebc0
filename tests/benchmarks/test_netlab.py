import socket
import subprocess
import sys
import time
from statistics import median

import pytest

from benchmarks.netlab import Access, LabError, NetLab, parse_access, unavailable
from benchmarks.netlab.check import bulk_mbit, echo_once, round_trips_ms
from device_profiles.link import LinkError

SO_RCVBUFFORCE = 33  # of Linux

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no network namespaces: {unavailable()}")


def test_a_round_trip_takes_the_delays_of_both_hosts_twice():
    with NetLab({"a": Access(delay_ms=0.5), "b": Access(delay_ms=4.5)}) as lab:
        trips = round_trips_ms(lab["a"], lab["b"], 40)
    assert trips[0] >= 10.0
    assert trips[0] < 11.0  # the least of many: a busy machine makes single ones late


def test_a_transfer_keeps_to_the_rate_of_the_slower_side_and_a_change_holds_at_once():
    with NetLab({"a": Access(up_mbit=20), "b": Access()}) as lab:
        first = bulk_mbit(lab["a"], lab["b"], 2_000_000)
        lab["a"].change(up_mbit=None)
        lab["b"].change(down_mbit=5)
        second = bulk_mbit(lab["a"], lab["b"], 500_000)
    # TCP, IP and Ethernet take their part. A busy machine may be slower; how close a quiet one comes: benchmarks.netlab.check
    assert 0 < first < 20 * 1448 / 1538 * 1.1
    assert 0 < second < 5 * 1448 / 1538 * 1.1


def _udp_received(lab, count):
    with lab["b"].inside():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((lab["b"].address, 0))
        receiver.settimeout(0.5)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # all of them wait until the sender is done
    with lab["a"].inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    received = []
    with sender, receiver:
        for number in range(count):
            sender.sendto(number.to_bytes(4, "little"), receiver.getsockname())
            if number % 50 == 49:
                time.sleep(0.001)
        try:
            while True:
                received.append(int.from_bytes(receiver.recv(4), "little"))
        except TimeoutError:
            return received


def test_loss_is_its_share_and_the_same_again_with_the_same_seed():
    runs = []
    for seed in (1, 1, 2):
        with NetLab({"a": Access(loss=0.1), "b": Access()}, seed=seed) as lab:
            runs.append(_udp_received(lab, 1000))
            assert lab["a"].traffic().up_lost == 1000 - len(runs[-1])
    assert runs[0] == runs[1] != runs[2]
    assert 840 < len(runs[0]) < 960


def test_jitter_adds_up_to_its_bound_and_nothing_overtakes():
    with NetLab({"a": Access(delay_ms=2, jitter_ms=20), "b": Access()}) as lab:
        trips = round_trips_ms(lab["a"], lab["b"], 60)
        received = _udp_received(lab, 300)
    assert trips[0] >= 4.0
    assert median(trips) > 14.0  # 4 + 2 * 10 on average; a busy machine adds to it
    assert received == list(range(300))


def test_a_partition_stops_what_crosses_it_until_it_heals():
    with NetLab({"a": Access(), "b": Access(), "c": Access()}) as lab:
        lab.partition(["a"])
        port = echo_once(lab["b"])
        with lab["c"].inside(), socket.create_connection((lab["b"].address, port), timeout=5):
            pass
        port = echo_once(lab["b"])
        with lab["a"].inside(), pytest.raises(TimeoutError):
            socket.create_connection((lab["b"].address, port), timeout=0.3)
        lab.heal()
        with lab["a"].inside(), socket.create_connection((lab["b"].address, port), timeout=10) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"


def test_programs_and_children_of_a_thread_inside_live_on_the_host():
    code = "import socket; s = socket.create_server(('10.77.0.2', 0)); print(s.getsockname()[0])"
    with NetLab({"a": Access(), "b": Access()}) as lab:
        done = lab["b"].run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == lab["b"].address
        with lab["b"].inside():
            child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert child.stdout.strip() == lab["b"].address
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0


def test_the_lab_ends_with_its_owner():
    code = (
        "import os; from benchmarks.netlab import Access, NetLab\n"
        "lab = NetLab({'a': Access()}); print(lab['a'].namespace, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    relay = done.stdout.split("/")[2]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(relay):
        time.sleep(0.01)
    assert not _runs(relay)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_wrong_settings_and_unknown_hosts_are_named():
    with pytest.raises(LabError, match="positive rates"):
        Access(up_mbit=0)
    with pytest.raises(LabError, match="loss of 0 to 1"):
        Access(loss=1.5)
    with pytest.raises(LinkError, match="20mbit/15ms"):
        parse_access("fast")
    with pytest.raises(LabError, match="1 to 250 hosts"):
        NetLab({})
    with NetLab({"a": Access()}) as lab:
        with pytest.raises(LabError, match="'z'"):
            lab["z"]
        with pytest.raises(LabError, match="'z'"):
            lab.partition(["z"])
    with pytest.raises(LabError, match="gone"):
        lab["a"].set(Access())
