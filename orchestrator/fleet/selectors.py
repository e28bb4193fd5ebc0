"""Label selectors: `site=lab,board!=rpi-4,gpu,!old` finds devices; a label without a value is a tag."""

import re
from collections.abc import Callable, Mapping

from orchestrator.fleet.errors import SelectorError

_TERM = re.compile(r"(?P<not>!?)(?P<key>[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63})(?:(?P<op>!?=)(?P<value>[^,=!]{0,100}))?\Z")
Selector = Callable[[Mapping[str, str]], bool]


def parse_selector(text: str) -> Selector:
    """A function that says whether labels match; all terms must. `name`, `board` and `tenant` count as labels.

    Raises:
        SelectorError: A term that is none of `key`, `!key`, `key=value`, `key!=value`.
    """
    terms = [_parse_term(term.strip()) for term in text.split(",")]

    def matches(labels: Mapping[str, str]) -> bool:
        return all(term(labels) for term in terms)

    return matches


def is_selector(text: str) -> bool:
    """Whether a text can only be a selector: a name holds none of these signs."""
    return any(sign in text for sign in "=!,")


def _parse_term(text: str) -> Selector:
    found = _TERM.match(text)
    if found is None or (found["not"] and found["op"]):
        raise SelectorError(
            f"Wanted terms such as site=lab, board!=rpi-4, gpu or !old between commas, found {text[:80]!r}."
        )
    key, operator, value = found["key"], found["op"], found["value"]
    if operator == "=":
        return lambda labels: labels.get(key) == value
    if operator == "!=":
        return lambda labels: labels.get(key) != value
    wanted = not found["not"]
    return lambda labels: (key in labels) == wanted
