"""Commands that run until a signal ends them."""

import signal
import subprocess
import threading
from types import SimpleNamespace

import pytest

from orchestrator.commands.serving import until_stopped
from orchestrator.fleet import supervisor


class Finalised:
    """Gets a signal where what its handler raises goes no further."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["in the block", "in a finaliser"])
def test_a_signal_ends_the_block_wherever_it_comes(where, number):
    ended_by_itself = False
    with until_stopped():
        if where == "in the block":
            signal.raise_signal(number)
        Finalised(number)
        threading.Event().wait(10)
        ended_by_itself = True
    assert not ended_by_itself
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_while_a_service_of_a_fleet_starts_leaves_no_process(tmp_path, monkeypatch):
    started: list[subprocess.Popen[bytes]] = []

    def start(command, **more):
        started.append(subprocess.Popen(["sleep", "60"], **more))
        signal.raise_signal(signal.SIGTERM)
        return started[-1]

    fake = SimpleNamespace(**{**vars(subprocess), "Popen": start})
    monkeypatch.setattr(supervisor, "subprocess", fake)
    with until_stopped():
        supervisor.Supervisor(tmp_path, broker="mqtt://127.0.0.1:1", ports={"dashboard": 0, "files": 0})
    assert [one.wait(10) for one in started] == [-signal.SIGTERM]
