"""Options of `edge-agent` about replacing the agent itself, and `edge-agent check`, which a new version answers first."""

import argparse
import compileall
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.version import __version__

if TYPE_CHECKING:
    from edge_runtime.agent_options import Launched


def add_confirming(run: argparse.ArgumentParser) -> None:
    """What `edge-agent run` takes."""
    run.add_argument(
        "--confirm-s",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a new version of the agent has so long to connect and confirm, or the one before comes back; 0: only the installed one runs",
    )


def add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", state: Path) -> None:
    """`edge-agent check`."""
    check = commands.add_parser("check", help="say whether this agent understands a device's arguments and state")
    check.set_defaults(command=_check)
    check.add_argument("--state", type=Path, default=state, metavar="DIR")
    check.add_argument("run", nargs="*", metavar="-- ARGUMENT", help="with which it would be started: run ..")


def launched_of(arguments: argparse.Namespace) -> "Launched | None":
    """How this process was started, so that another version can be; null where --confirm-s says that none may."""
    from edge_runtime.agent_options import Launched

    if arguments.confirm_s <= 0:
        return None
    return Launched(arguments=tuple(sys.argv[1:]), confirm_s=arguments.confirm_s)


def _check(arguments: argparse.Namespace) -> int:
    """Print a verdict as JSON; status 0 whatever it says."""
    import msgspec

    from edge_runtime.self_update import Verdict

    problem = _parse_problem(arguments.run) or _state_problem(arguments.state)
    if problem is None:
        # Compiled here and synced with the rest: nothing is written into a slot later on.
        compileall.compile_dir(Path(__file__).parents[1], quiet=2)
    sys.stdout.write(msgspec.json.encode(Verdict(version=__version__, problem=problem)).decode() + "\n")
    return 0


def _parse_problem(words: list[str]) -> str | None:
    from edge_runtime.cli import build_parser

    try:
        if words:
            build_parser().parse_args(words)
    except SystemExit:
        return f"it does not take these arguments: {' '.join(words)}"[:300]
    return None


def _state_problem(state: Path) -> str | None:
    """What of the device's state it cannot read or serve; nothing is written, because the other agent runs."""
    import msgspec

    from device_profiles.errors import EdgeError
    from edge_runtime import agent  # noqa: F401 - everything that it needs must be there
    from edge_runtime.follow import MEMORY_NAME, read_memory
    from edge_runtime.gate import TRUST_NAME, read_trust
    from edge_runtime.identity import read_identity
    from edge_runtime.manifest import MANIFEST_NAME, parse_manifest
    from edge_runtime.session import available_engines
    from edge_runtime.slots import ARTEFACTS, POINTER_NAME, read_pointer

    try:
        read_identity(state)
        read_trust(state / TRUST_NAME)
        read_memory(state / MEMORY_NAME)
        active = read_pointer(state / POINTER_NAME).active
        for artefact in filter(None, (active.head, active.whole)):
            manifest = state / ARTEFACTS / artefact / MANIFEST_NAME
            engine = parse_manifest(manifest.read_bytes()).engine.name
            if engine not in available_engines():
                return f"it has no engine {engine} for the model {artefact[:16]}.."
    except (EdgeError, msgspec.MsgspecError, ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"[:400]
    return None
