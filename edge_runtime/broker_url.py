"""Where a broker is: its URL taken apart, printed without its password, and whether it is this machine."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from device_profiles.errors import EdgeError

DEFAULT_PORT = 1883


class MqttError(EdgeError):
    """The connection to the broker cannot carry a message."""


class UrlError(MqttError):
    """Not a broker URL; the message never holds its password."""


@dataclass(frozen=True)
class BrokerUrl:
    """mqtt://[user[:password]@]host[:port]; user and password are percent-decoded."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None


def parse_url(url: str) -> BrokerUrl:
    """Take a broker URL apart.

    Raises:
        UrlError: Another scheme, no host, or a port out of range.
    """
    shown = hide_password(url)
    try:
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        port = parts.port or DEFAULT_PORT
    except ValueError:  # its text may hold a part of the password, as a port that is no number
        raise UrlError(f"Wanted a broker URL such as mqtt://host:1883, found {shown!r}.") from None
    if parts.scheme != "mqtt" or not parts.hostname or parts.path not in ("", "/"):
        raise UrlError(f"Wanted a broker URL such as mqtt://host:1883 (TLS is not built yet), found {shown!r}.")
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return BrokerUrl(parts.hostname, port, user, password)


def is_loopback(url: str) -> bool:
    """Whether a broker's URL names this machine by a loopback address.

    Raises:
        UrlError: Not a broker URL.
    """
    host = parse_url(url).host
    return host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def hide_password(url: str) -> str:
    """The URL as it may be printed: what stands between the scheme and the last @ may be a password."""
    before, at, after = url.rpartition("@")
    scheme, separator, _ = before.rpartition("://") if "://" in before else ("", "", before)
    return f"{scheme}{separator}...{at}{after}" if at else url
