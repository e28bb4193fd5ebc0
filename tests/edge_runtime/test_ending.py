"""Signals that come while the main thread holds the lock of the event that ends it."""

import subprocess
import sys
import textwrap

import pytest

from orchestrator.signing import make_key

HELD = """
import os, signal, sys, threading, types

class Held(threading.Event):
    def wait(self, timeout=None):
        with self._cond:  # as it is for a moment in every wait
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
        return super().wait(timeout)
"""


def run(code, *arguments):
    """In a process of its own, with time to end in order; what it printed."""
    code = HELD + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_signals_end_a_wait_whose_lock_is_held_and_are_counted():
    code = """
    from edge_runtime.ending import when_told_to_end
    ended = Held()
    told = when_told_to_end(ended.set)
    assert ended.wait(10)
    print(*map(int, told))
    """
    assert run(code) == "15 2 15\n"


def test_programs_of_the_fleet_end():
    code = """
    from pathlib import Path
    from orchestrator.fleet.program import Program
    ended = Held()
    Program("", "", Path(), "one").on_stop(ended.set)
    assert ended.wait(10)
    """
    run(code)


@pytest.mark.parametrize("name", ["files", "freshness"])
def test_servers_of_the_fleet_end(name, tmp_path):
    code = f"""
    from orchestrator.fleet import {name} as module
    module.threading = types.SimpleNamespace(Event=Held)
    module.main()
    """
    arguments = {
        "files": ["--store", f"sqlite:///{tmp_path / 'fleet.sqlite'}", "--folder", str(tmp_path), "--port", "0"],
        "freshness": ["--source", str(tmp_path), "--folder", str(tmp_path), "--key", str(tmp_path / "online.pem")],
    }
    make_key(tmp_path / "online.pem", name="online")
    run(code, *arguments[name])


def test_an_agent_ends(tmp_path):
    code = """
    from edge_runtime import agent
    from edge_runtime.cli import main
    agent.threading = types.SimpleNamespace(**{**vars(threading), "Event": Held})
    main(sys.argv[1:])
    """
    run(code, "run", "--broker", "mqtt://127.0.0.1:9", "--device", "d", "--state", str(tmp_path))


def test_ctrl_c_before_an_agent_runs_ends_it_without_a_traceback(tmp_path):
    code = """
    from edge_runtime import agent
    from edge_runtime.cli import main

    class Starting:
        def __init__(self, *_, **__):
            signal.raise_signal(signal.SIGINT)

    agent.Agent = Starting
    try:
        main(sys.argv[1:])
    except SystemExit as ended:
        print(ended.code)
    """
    assert run(code, "run", "--broker", "mqtt://127.0.0.1:9", "--device", "d", "--state", str(tmp_path)) == "130\n"
