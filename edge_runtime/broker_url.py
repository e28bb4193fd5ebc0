"""Where a broker is: its URL taken apart, printed without its password, and whether it is this machine."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from device_profiles.errors import EdgeError

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883
_TLS_FILES = ("ca", "cert", "key")


class MqttError(EdgeError):
    """The connection to the broker cannot carry a message."""


class UrlError(MqttError):
    """Not a broker URL; the message never holds its password."""


@dataclass(frozen=True)
class TlsFiles:
    """Who may be the broker (`ca`), and who we are: certificate and private key, in PEM."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class BrokerUrl:
    """mqtt://[user[:password]@]host[:port], or mqtts://..?ca=FILE[&cert=FILE&key=FILE]; everything is percent-decoded."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: TlsFiles | None = None


def parse_url(url: str) -> BrokerUrl:
    """Take a broker URL apart.

    Raises:
        UrlError: Another scheme, no host, a port out of range, or TLS without a CA.
    """
    shown = hide_password(url)
    try:
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        port = parts.port
    except ValueError:  # its text may hold a part of the password, as a port that is no number
        raise UrlError(f"Wanted a broker URL such as mqtt://host:1883, found {shown!r}.") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise UrlError(f"Wanted a broker URL such as mqtt://host:1883 or mqtts://host?ca=FILE, found {shown!r}.")
    files = dict(parse_qsl(parts.query, keep_blank_values=True))
    secure = parts.scheme == "mqtts"
    if set(files) - set(_TLS_FILES) or ("cert" in files) != ("key" in files) or secure != ("ca" in files):
        raise UrlError(
            f"Wanted mqtts://host?ca=FILE with or without &cert=FILE&key=FILE, or mqtt://host alone, found {shown!r}."
        )
    tls = (
        TlsFiles(Path(files["ca"]), *(Path(files[one]) for one in ("cert", "key") if one in files)) if secure else None
    )
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return BrokerUrl(parts.hostname, port or (DEFAULT_TLS_PORT if secure else DEFAULT_PORT), user, password, tls)


def tls_url(host: str, port: int, files: TlsFiles) -> str:
    """The URL of a broker with TLS."""
    named = {name: str(path) for name in _TLS_FILES if (path := getattr(files, name)) is not None}
    return f"mqtts://{host}:{port}?{urlencode(named, safe='/')}"


def is_loopback(url: str) -> bool:
    """Whether a broker's URL names this machine by a loopback address.

    Raises:
        UrlError: Not a broker URL.
    """
    return is_loopback_host(parse_url(url).host)


def is_loopback_host(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hide_password(url: str) -> str:
    """The URL as it may be printed: what stands between the scheme and the last @ may be a password."""
    before, at, after = url.rpartition("@")
    scheme, separator, _ = before.rpartition("://") if "://" in before else ("", "", before)
    return f"{scheme}{separator}...{at}{after}" if at else url
