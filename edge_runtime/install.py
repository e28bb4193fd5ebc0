"""The systemd unit of an agent: restarted whenever it ends or hangs, with no rights but those that it needs."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_profiles.errors import EdgeError

UNIT_FOLDER = Path("/etc/systemd/system")
UNIT_NAME = "edge-agent.service"
SYSTEMD = Path("/run/systemd/system")  # is there while systemd runs
LEAST_MEMORY_MB = 64
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # by ProtectHome and PrivateTmp
_WALLS = (  # what an agent never does
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)


class InstallError(EdgeError):
    """The unit cannot be written."""


@dataclass(frozen=True)
class InstallOptions:
    """What the unit runs, and what it may reach besides the network and its state folder."""

    command: tuple[str, ...]  # of `edge-agent run`, without the program
    devices: bool = False  # cameras and GPUs
    read: tuple[Path, ...] = ()  # folders to read where the unit hides them, of pictures for example
    watchdog_s: int = 30
    memory_mb: int = 1024


def unit_text(options: InstallOptions, program: Sequence[str]) -> str:
    """The unit file.

    Raises:
        InstallError: An argument with a line break.
    """
    words = [*program, "run", *options.command]
    if any("\n" in word for word in (*words, *map(str, options.read))):
        raise InstallError("Wanted arguments on one line, found a line break.")
    lines = [
        "# Written by edge-agent install.",
        "[Unit]",
        "Description=headtail agent",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",  # a device must never give up: the agent itself goes back to the model before
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=all",  # an agent on probation is the child of the one that watches it
        f"ExecStart={' '.join(_quote(word) for word in words)}",
        f"WatchdogSec={options.watchdog_s}",
        "TimeoutStartSec=120",
        "Restart=always",
        "RestartSec=2",
        "DynamicUser=yes",
        "StateDirectory=headtail",
        "StateDirectoryMode=0700",
        "Environment=XDG_STATE_HOME=/var/lib",  # where root has enrolled the device; systemd hands it over
        "UMask=0077",
        "LimitCORE=0",
        "LimitNOFILE=1024",
        f"MemoryMax={options.memory_mb}M",
        "TasksMax=128",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=tmpfs",
        "PrivateTmp=yes",
        f"PrivateDevices={'no' if options.devices else 'yes'}",
        *(["SupplementaryGroups=video"] if options.devices else []),
        *(f"BindReadOnlyPaths={_quote(str(path))}" for path in options.read),
        *_WALLS,
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines)


def install(options: InstallOptions, folder: Path | None = None) -> Path:
    """Write the unit for the agent that runs this, into systemd's folder or another one.

    Raises:
        InstallError: No systemd, no such folder, no right to write there, or options with which the unit would not start.
    """
    if folder is None and not SYSTEMD.is_dir():
        raise InstallError(
            f"Wanted systemd to keep the agent running, found none ({SYSTEMD} is missing). Have `edge-agent run` started by "
            "what starts programs here, or write the unit for another machine with --folder."
        )
    for place in options.read:
        if not place.exists():
            raise InstallError(f"Wanted folders to read, found no {place}: the unit would not start. Make it first.")
    if options.memory_mb < LEAST_MEMORY_MB:
        raise InstallError(f"Wanted --memory-mb of {LEAST_MEMORY_MB} or more, found {options.memory_mb}.")
    script = Path(sys.executable).with_name("edge-agent")
    program = [str(script)] if script.is_file() else [sys.executable, "-m", "edge_runtime.cli"]
    own = hidden_places((Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent.parent))
    text = unit_text(replace(options, read=(*options.read, *own)), program)
    path = (folder or UNIT_FOLDER) / UNIT_NAME
    try:
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(text)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise InstallError(
            f"Wanted to write {path}, found: {error}. Run it as root, or choose another --folder."
        ) from error
    return path


def hidden_places(wanted: Iterable[Path]) -> tuple[Path, ...]:
    """Which of these folders the unit would hide: a virtual environment or a Python in somebody's home, say. None within another."""
    hidden = sorted({path for path in wanted if any(path.is_relative_to(one) for one in _HIDDEN)})
    return tuple(path for path in hidden if not any(path != one and path.is_relative_to(one) for one in hidden))


def _quote(word: str) -> str:
    """A word for ExecStart: systemd expands % and $, and splits at blanks."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or any(one in word for one in " \t;'\"") else word
