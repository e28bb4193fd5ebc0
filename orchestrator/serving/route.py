"""What a request's topic says: which device asks for which model, and where the answer goes."""

from functools import lru_cache

from edge_runtime.messages import MessageError, parse_topic


@lru_cache(maxsize=4096)
def derive_route(topic: str) -> tuple[str, str, str]:
    """Route key, reply topic and device ("tenant/device") of a request topic.

    Raises:
        MessageError: Not a request topic.
    """
    parsed = parse_topic(topic)
    if len(parsed.rest) != 4 or parsed.rest[:2] != ("off", "req"):
        raise MessageError(f"Wanted a request topic, found {topic[:200]!r}.")
    topics = parsed.topics
    return parsed.rest[2], topics.reply(parsed.rest[3]), f"{topics.tenant}/{topics.device}"
