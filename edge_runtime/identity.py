"""Who a device is in its fleet: name, certificate, and where the broker is; written by `edge-agent enroll`."""

from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import TlsFiles, tls_url
from edge_runtime.messages import Name

_FOLDER = "identity"
_Port = int


class IdentityError(EdgeError):
    """The device's identity is missing or damaged."""


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the fleet's services are, as the host says when a device enrols."""

    host: str
    device_port: int
    service_port: int


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `identity/fleet.json`."""

    v: int = 1
    device: Name
    tenant: Name
    place: Place


def identity_folder(state: Path) -> Path:
    """Where a device keeps it; readable by its owner alone."""
    return state / _FOLDER


def identity_files(state: Path) -> TlsFiles:
    """CA, certificate and private key."""
    folder = identity_folder(state)
    return TlsFiles(folder / "ca.pem", folder / "device.pem", folder / "device.key")


def read_identity(state: Path) -> Identity | None:
    """What a device is; null when it has not enrolled.

    Raises:
        IdentityError: The file is damaged.
    """
    path = identity_folder(state) / "fleet.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IdentityError(
            f"Wanted the identity of this device, found: {error}, in {path}. Enrol it again."
        ) from error


def broker_urls(identity: Identity, state: Path) -> tuple[str, str]:
    """The URL of the control connection, and that for offloaded requests."""
    place, files = identity.place, identity_files(state)
    return tls_url(place.host, place.device_port, files), tls_url(place.host, place.service_port, files)
