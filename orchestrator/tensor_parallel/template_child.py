"""Renders chat templates in a process of its own, whose memory and time are bounded: a template is somebody's program.

One request a line on stdin, one answer a line on stdout, both JSON; it ends with stdin. In 16 bytes a template can ask for all
memory of a machine, in ways that no sandbox in the process itself sees.
"""

import contextlib
import datetime
import functools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 512 << 20  # addresses of this process, 25 MB of which are the program's
MOST_SECONDS = 10
MOST_CHARACTERS = 16 << 20  # of a conversation as the model reads it
_NICE = 10  # a tenth of a processor where streams want all of them, which otherwise wait for it at every step
_ERRORS = (  # whatever a program may raise
    TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


def main() -> None:
    """Answer until nobody asks any more."""
    _give_way()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin.buffer:
        signal.alarm(MOST_SECONDS)  # ends the process, wherever it is
        try:
            answer = json.dumps(_answer(json.loads(line))).encode()
        except MemoryError:
            answer = json.dumps({"error": f"more than {MOST_BYTES >> 20} MiB of memory are wanted"}).encode()
        signal.alarm(0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _give_way() -> None:
    """What computes goes before this process, also where the kernel shares out time among sessions first."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):  # only some kernels do
        Path("/proc/self/autogroup").write_text(str(_NICE))


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = _compiled(request["template"]).render(**request["values"])
    except _ERRORS as error:
        return {"error": (str(error) if isinstance(error, TemplateError) else repr(error))[:2000]}
    if len(text) > MOST_CHARACTERS:
        return {"error": f"{len(text)} characters come of it, more than {MOST_CHARACTERS}"}
    return {"text": text}


@functools.lru_cache(maxsize=1)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(  # as transformers does: templates ask for fields that are not there
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


class _Generation(Extension):
    """{% generation %}: marks what the assistant says, for training; here it is what it holds."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[Node]:
        """The statements up to endgeneration."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    """Templates of newer models name the date."""
    return datetime.datetime.now().strftime(pattern)


if __name__ == "__main__":
    main()
