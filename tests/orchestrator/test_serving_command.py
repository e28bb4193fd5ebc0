"""Commands that run until a signal ends them."""

import signal
import threading

import pytest

from orchestrator.commands.serving import until_stopped


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
