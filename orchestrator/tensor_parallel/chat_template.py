"""The chat template of a model, rendered by a process of its own (`template_child`) that is begun with the first conversation."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from edge_runtime.child import ROOT, child_environment
from orchestrator.tensor_parallel.errors import PromptError
from orchestrator.tensor_parallel.template_child import MOST_CHARACTERS

_CHILD = [sys.executable, "-m", "orchestrator.tensor_parallel.template_child"]
_TEMPLATE_CHARACTERS = 1 << 20
_ANSWER_BYTES = 16 * MOST_CHARACTERS  # each may be written as \\ud83d\\ude00
_END_S = 5.0


class ChatTemplate:
    """A template, for callers of any thread; one renders at a time.

    Args:
        template: In Jinja.
    """

    def __init__(self, template: str) -> None:
        self._template = template[:_TEMPLATE_CHARACTERS]
        self._lock = threading.Lock()  # guards the child
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], int | None] = lambda: None

    def render(self, values: dict[str, Any]) -> str:
        """The text of a conversation.

        Args:
            values: What the template may name; of JSON's types.

        Raises:
            PromptError: The template refuses them or fails on them, or wants too much time or memory.
        """
        request = json.dumps({"template": self._template, "values": values}).encode() + b"\n"
        with self._lock:
            line = self._ask(request)
        answer = json.loads(line)
        if "text" not in answer:
            raise _refused(answer["error"])
        text: str = answer["text"]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _refused(f"half a character, {text[error.start]!r}") from error
        return text

    def _ask(self, request: bytes) -> bytes:
        child = self._child
        if child is None or child.poll() is not None:
            self._end()
            child = self._child = subprocess.Popen(  # a session of its own: Ctrl-C is for the server
                _CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                cwd=ROOT, env=child_environment(),
            )  # fmt: skip
            self._end = weakref.finalize(self, _end, child)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
            line = child.stdout.readline(_ANSWER_BYTES)
        except OSError:
            line = b""  # it is gone
        if not line.endswith(b"\n"):
            status = self._end()
            why = "too much time is wanted" if status == -signal.SIGALRM else f"its process ended with status {status}"
            raise _refused(why)
        return line


def _refused(why: str) -> PromptError:
    return PromptError(f"Wanted messages that the model's chat template takes, found: {why}.")


def _end(child: subprocess.Popen[bytes]) -> int:
    """Close its pipes and wait; its exit status."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written yet has no reader
                pipe.close()
    try:
        return child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
