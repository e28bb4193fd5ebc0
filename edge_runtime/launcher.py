"""Start the agent that the device's slots name, in place of the installed one that `edge-agent run` began with.

One that has proven itself takes this process's place (exec). One on probation is started as a child and watched: it must
confirm in time and may not end again and again, else what ran before is started. Without a slot the installed agent goes on
in this process. This module is part of the installed agent, which no update touches; what it and an agent in a slot share
is `agent.json` (agent_slots.py), the exit status RESTART and the two variables below.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from edge_runtime.agent_bundle import SITE, find_damage
from edge_runtime.agent_slots import AgentSlots, running_slot

log = logging.getLogger(__name__)
RESTART = 86  # exit status of a watched agent that wants to be started anew, perhaps as another one
_LAUNCHER = "HEADTAIL_LAUNCHER"  # how the launcher was started: JSON of the command and of PYTHONPATH before
_WATCHER = "HEADTAIL_WATCHER"  # process id of a launcher that watches
_BOOT = "import sys; sys.path[0] = {site!r}; from edge_runtime.cli import main; main()"
_POLL_S = 0.1
_PAUSE_S = 1.0  # before one that ended is started again
_END_S = 15.0  # between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1


def launch(arguments: Sequence[str], state: Path) -> None:
    """Run the agent of the active slot; returns only when the installed one shall run, in this process.

    Args:
        arguments: Of the command line; the installed agent has parsed them, as it may have to run with them.
        state: The state folder.
    """
    if running_slot(__file__) is not None:
        return
    slots = AgentSlots(state)
    while True:
        chosen = choose(slots)
        if chosen is None:
            return
        probation = slots.pointer.probation
        if probation is None or probation.artefact != chosen:
            words = boot_command(slots.folder(chosen), arguments)
            os.execve(words[0], words, _environment(slots, chosen, watched=False))
        _watch(slots, chosen, arguments)


def choose(slots: AgentSlots) -> str | None:
    """The bundle to start now, complete and unchanged; null for the installed agent. Counts a start on probation."""
    try:
        if not slots.count_start():
            slots.roll_back("AgentError: Wanted it to stay up, found it started again and again.")
        pointer = slots.pointer
        damage = _damage(slots, pointer.active)
        if damage is not None and pointer.probation is not None:
            slots.roll_back(f"IntegrityError: {damage}")
    except OSError as error:  # nothing can be noted: nothing that is not proven is started
        pointer = slots.pointer
        damage = str(error) if pointer.probation is not None else _damage(slots, pointer.active)
    if damage is None:
        return pointer.active
    log.error("the agent %s cannot run: %s", (pointer.active or "installed")[:16], damage)
    return None if _damage(slots, pointer.previous) is not None else pointer.previous


def boot_command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """How the agent in a bundle's folder is started: its code goes first on Python's path."""
    return [sys.executable, "-c", _BOOT.format(site=str((folder / SITE).resolve())), *arguments]


def restart() -> NoReturn:
    """End this agent and start what the slots name by now: through the launcher that watches, or in its place."""
    if os.environ.get(_WATCHER) == str(os.getppid()):
        sys.exit(RESTART)
    told = os.environ.get(_LAUNCHER)
    words: list[str] = [sys.executable, *sys.orig_argv[1:]] if told is None else json.loads(told)[0]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], words, plain_environment())


def plain_environment() -> dict[str, str]:
    """The environment as it was before a launcher changed it: nothing in it leads to this agent's own slot."""
    environment = dict(os.environ)
    told = environment.pop(_LAUNCHER, None)
    environment.pop(_WATCHER, None)
    if told is not None:
        environment.pop("PYTHONPATH", None)
        path = json.loads(told)[1]
        if path is not None:
            environment["PYTHONPATH"] = path
    return environment


def _damage(slots: AgentSlots, bundle: str | None) -> str | None:
    return None if bundle is None else find_damage(slots.folder(bundle), bundle)


def _environment(slots: AgentSlots, chosen: str, *, watched: bool) -> Mapping[str, str]:
    """Where the agent, and the processes that it starts, find its code; and how it can be started anew."""
    environment = dict(os.environ)
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str((slots.folder(chosen) / SITE).resolve()), *([before] if before else [])]
    )
    environment[_LAUNCHER] = json.dumps([[sys.executable, *sys.orig_argv[1:]], before])
    if watched:
        environment[_WATCHER] = str(os.getpid())
        environment.pop("WATCHDOG_PID", None)  # the child gives the signs of life: NotifyAccess=all
    return environment


def _watch(slots: AgentSlots, chosen: str, arguments: Sequence[str]) -> None:
    """One start of an agent on probation; returns when something is to be started anew, exits when the agent has ended in order."""
    probation = slots.pointer.probation
    if probation is None:
        return
    told: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = {one: signal.signal(one, tell) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = _start(slots, chosen, arguments)
        deadline = time.monotonic() + probation.confirm_s
        while (status := child.poll()) is None:
            if told:
                status = _end(child)
                break
            if time.monotonic() > deadline and slots.pointer.probation is not None:
                _end(child)
                why = f"AgentError: Wanted it to confirm within {probation.confirm_s:g} s, found that it did not."
                with contextlib.suppress(OSError):  # where that cannot be noted, `choose` starts what is proven
                    slots.roll_back(why)
                if told:
                    sys.exit(0)
                return
            time.sleep(_POLL_S)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if told or status == 0:
        sys.exit(0 if told else status)
    if status == RESTART:
        return
    if slots.pointer.probation is None:  # it had proven itself: whoever restarts agents does so
        sys.exit(status if status > 0 else 128 - status)
    log.error("the agent %s ended with status %d while on probation", chosen[:16], status)
    time.sleep(_PAUSE_S)


def _start(slots: AgentSlots, chosen: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        boot_command(slots.folder(chosen), arguments),
        env=_environment(slots, chosen, watched=True),
        preexec_fn=die_with_parent,  # safe: this process has one thread
    )


def _end(child: "subprocess.Popen[bytes]") -> int:
    child.terminate()
    try:
        return child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
