"""Documents out of the database, which an earlier version may have written under other checks.

One that today's checks refuse is named in the log, once, and counts as not there: it holds up nothing else.
"""

import logging
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

log = logging.getLogger(__name__)
Document = TypeVar("Document")


def read_record(found: str | dict[str, Any] | None, kind: type[Document], whose: str) -> Document | None:
    """The document of a row, null where it is null or refused.

    Args:
        found: JSON, or what became of it.
        kind: What it should be.
        whose: The device, job or rollout, for the log.
    """
    if found is None:
        return None
    try:
        return msgspec.json.decode(found, type=kind) if isinstance(found, str) else msgspec.convert(found, kind)
    except msgspec.DecodeError as error:
        say_refused(f"Wanted {kind.__name__} of {whose} as this version reads it, found: {error}.")
        return None


@lru_cache(maxsize=1024)
def say_refused(why: str) -> None:
    """A line in the log, for the same words once."""
    log.error("%s It is passed over.", why)
