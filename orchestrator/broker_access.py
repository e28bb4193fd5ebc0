"""mosquitto's access rules for a fleet with certificates: two listeners, and who may say what where.

Devices keep one control connection on the first listener, where the certificate's name is user name and client id, so
that nobody takes another one's session. Offloaded tensors and the host's services use the second one, whose client ids
are the broker's own. Rules are per listener: what a device may do on one it may not do on the other.
"""

from dataclasses import dataclass
from pathlib import Path

from edge_runtime.messages import PREFIX, check_segment
from edge_runtime.tail_messages import HOST_TENANT

DISCOVERY = "homeassistant"  # where Home Assistant looks for devices


@dataclass(frozen=True)
class AccessOptions:
    """Where the certificates are (a folder of `headtail pki init`), the tenant, and the two ports."""

    folder: Path
    host: str
    device_port: int
    service_port: int
    tenant: str = "default"
    max_connections: int = 20_000


def device_rules(tenant: str) -> str:
    """Of the device listener: `%u` is the certificate's name."""
    mine = f"{PREFIX}/{check_segment('tenant', tenant)}/%u"
    return f"pattern write {mine}/up/#\npattern read {mine}/down/#\n"


def service_rules(tenant: str) -> str:
    """Of the service listener: devices may offload; services, whose names begin with @, have rules of their own."""
    mine = f"{PREFIX}/{check_segment('tenant', tenant)}"
    return (
        f"user @orchestrator\n"
        f"topic read {mine}/+/up/#\n"
        f"topic write {mine}/+/down/#\n"
        f"topic read {PREFIX}/{HOST_TENANT}/+/up/tail\n"
        f"topic readwrite {PREFIX}/check/#\n"
        f"topic write {DISCOVERY}/#\n"
        f"user @tails\n"
        f"topic read {mine}/+/off/req/#\n"
        f"topic write {mine}/+/off/rep/#\n"
        f"topic write {PREFIX}/{HOST_TENANT}/+/up/tail\n"
        f"user @llm\n"
        f"topic read {mine}/+/up/llm\n"
        f"topic write {mine}/+/up/llm-plan\n"
        f"user @homeassistant\n"
        f"topic read {DISCOVERY}/#\n"
        f"topic read {mine}/+/up/hb\n"
        f"pattern write {mine}/%u/off/req/#\n"
        f"pattern read {mine}/%u/off/rep/#\n"
    )


def listener_lines(access: AccessOptions, rules: Path) -> list[str]:
    """Both listeners; `rules` is the folder of the two ACL files."""
    lines = ["per_listener_settings true"]
    for port, name, devices in ((access.device_port, "devices", True), (access.service_port, "services", False)):
        lines += [
            f"listener {port} {access.host}",
            "allow_anonymous false",
            f"cafile {access.folder / 'ca.pem'}",
            f"certfile {access.folder / 'broker.pem'}",
            f"keyfile {access.folder / 'broker.key'}",
            f"crlfile {access.folder / 'crl.pem'}",
            "require_certificate true",
            "use_identity_as_username true",
            "tls_version tlsv1.2",
            f"acl_file {rules / name}.acl",
            f"max_connections {access.max_connections}",
        ]
        if devices:
            lines.append("use_username_as_clientid true")
    return lines
