"""A PostgreSQL of one's own in a temporary folder, on a Unix socket only: for tests and benchmarks of scale-out."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from device_profiles.errors import EdgeError

_USERS = ("postgres", "nobody")  # the server refuses root


class PostgresError(EdgeError):
    """No PostgreSQL could be started."""


def find_postgres() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    if found is not None and Path(found).with_name("pg_ctl").exists():
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextlib.contextmanager
def own_postgres() -> Iterator[str]:
    """URL of a server that ends, and is removed, with the block.

    Raises:
        PostgresError: PostgreSQL is not installed, or does not start.
    """
    programs = find_postgres()
    if programs is None:
        raise PostgresError("Wanted PostgreSQL, found none. Install it: apt install postgresql, or: make setup-dev")
    with tempfile.TemporaryDirectory(prefix="headtail-pg.") as name:
        folder = Path(name)
        data = folder / "data"
        as_user = _hand_over(folder)
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=200 -c shared_buffers=64MB"
        _run([*as_user, str(programs / "initdb"), "-D", str(data), "-U", "headtail", "-A", "trust", "-E", "UTF8"])
        control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
        _run([*control, "-l", str(folder / "log"), "-o", options, "start"])
        try:
            yield f"postgresql://headtail@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _hand_over(folder: Path) -> list[str]:
    """Give the folder to a user who may run the server; how to run a program as that one."""
    if os.geteuid() != 0:
        return []
    for user in _USERS:
        with contextlib.suppress(LookupError):
            shutil.chown(folder, user)
            folder.chmod(0o755)
            return ["runuser", "-u", user, "--"]
    raise PostgresError(f"Wanted a user other than root for PostgreSQL, found none of {', '.join(_USERS)}.")


def _run(command: list[str]) -> None:
    with tempfile.TemporaryFile() as output:  # not a pipe: the server keeps what its starter had open
        status = subprocess.run(command, stdout=output, stderr=output, cwd="/", timeout=120, check=False).returncode
        output.seek(0)
        if status != 0:
            text = output.read().decode(errors="replace")
            raise PostgresError(f"Wanted `{' '.join(command[-6:])}` to succeed, found status {status}: {text[-600:]}")
