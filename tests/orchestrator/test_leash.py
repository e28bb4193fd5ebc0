"""Nothing that a command started outlives it, however the command ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.broker import free_port
from orchestrator.leash import Leash

HEADTAIL = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(600)"]
STUBBORN = [*SLEEPER[:-1], f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER[-1]}"]


def children_of(pid):
    """Process ids of its children that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = stat.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid and after_name[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=20):
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("did not come about in time")


def read_json(stream):
    """The document that a command prints over several lines."""
    text = line = b""
    while line != b"}\n":
        line = stream.readline()
        assert line, text
        text += line
    return json.loads(text)


def start(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("kind", ["broker", "fleet"])
def test_children_end_with_a_command_that_is_killed(kind, tmp_path):
    ports = ["--dashboard-port", str(free_port()), "--files-port", str(free_port())]
    fleet = ["fleet", "up", "--folder", str(tmp_path), "--demo", "2", *ports]
    command = [*HEADTAIL, *(["broker"] if kind == "broker" else fleet), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            said = read_json(process.stdout)
            children = children_of(process.pid)
            # one guard and mosquitto; for the fleet also its services and its devices
            assert len(children) == (2 if kind == "broker" else 3 + len(said["services"]))
        finally:
            process.kill()
    wait_until(lambda: not any(lives(pid) for pid in children))


def test_the_guard_ends_what_is_held_and_nothing_else():
    polite, stubborn, freed = start(SLEEPER), start(STUBBORN), start(SLEEPER)
    try:
        with Leash() as leash:
            for process in (polite, stubborn, freed):
                leash.hold(process.pid)
            leash.let_go(freed.pid)
            threading.Thread(target=polite.wait, daemon=True).start()  # as whoever takes over orphans does
            threading.Thread(target=stubborn.wait, daemon=True).start()
        assert (polite.wait(), stubborn.wait()) == (-signal.SIGTERM, -signal.SIGKILL)
        assert freed.poll() is None
    finally:
        for process in (polite, stubborn, freed):
            end(process)


def test_a_guard_that_is_killed_is_replaced():
    first, second = start(SLEEPER), start(SLEEPER)
    try:
        leash = Leash()
        leash.hold(first.pid)
        before = leash.pid
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not lives(before))
        leash.hold(second.pid)
        assert leash.pid != before
        threading.Thread(target=first.wait, daemon=True).start()
        threading.Thread(target=second.wait, daemon=True).start()
        leash.close()
        assert (first.wait(), second.wait()) == (-signal.SIGTERM, -signal.SIGTERM)
    finally:
        for process in (first, second):
            end(process)
