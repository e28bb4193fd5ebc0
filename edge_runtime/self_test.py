"""Try a new artefact in a process of its own, with limits: what a foreign model does to its engine stays there.

python -m edge_runtime.self_test FOLDER      prints one line of JSON: a report, or the error's name and text
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import parse_manifest
from edge_runtime.places import GoldenError, LocalPlace, Report

TIMEOUT_S = 120.0
_SPACE_BYTES = 2 << 30  # of addresses, besides what the artefact's size asks for
_SPACE_PER_BYTE = 16
_FILE_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 1 << 20


class SelfTestError(EdgeError):
    """The process that tried the artefact crashed, ran too long or took too much."""


class LatencyError(EdgeError):
    """The artefact is too slow on this device."""


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child found: a report or an error."""

    report: Report | None = None
    code: str | None = None
    error: str | None = None


def self_test(artefact: Artefact, *, budget_ms: float | None = None, timeout_s: float = TIMEOUT_S) -> Report:
    """Open an artefact and compare its golden vectors in a child process.

    Args:
        artefact: Its signature and hashes were checked.
        budget_ms: A warm golden run may not take longer.
        timeout_s: For all of it.

    Raises:
        GoldenError: Other outputs than the golden ones.
        LatencyError: Slower than the budget.
        EngineError: The engine refuses it; EngineVersionError and others by their own names.
        SelfTestError: The child died, hung or wrote no answer.
    """
    report = _run_child(artefact.folder, timeout_s)
    if not report.passed:
        worst = max(check.worst for check in report.checks)
        raise GoldenError(f"Wanted the golden outputs of {artefact.id[:16]}.., found a difference of {worst:g} here.")
    slowest = max((check.ms or 0.0 for check in report.checks), default=0.0)
    if budget_ms is not None and slowest > budget_ms:
        raise LatencyError(
            f"Wanted a golden run of {artefact.id[:16]}.. within {budget_ms:g} ms, found {slowest:.1f} ms on this device."
        )
    return report


def _run_child(folder: Path, timeout_s: float) -> Report:
    command = [sys.executable, "-m", "edge_runtime.self_test", str(folder)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise SelfTestError(f"Wanted the self-test to end within {timeout_s:g} s, found it still running.") from error
    except OSError as error:
        raise SelfTestError(f"Wanted to start the self-test, found: {error}.") from error
    try:
        outcome = msgspec.json.decode(done.stdout[-_MAX_ANSWER_BYTES:], type=Outcome)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise SelfTestError(
            f"Wanted a report of the self-test, found exit status {done.returncode} (negative: killed by that signal): {said}"
        ) from error
    if outcome.report is None:
        raise _named(outcome.code or "", outcome.error or "no reason")
    return outcome.report


def _named(code: str, text: str) -> EdgeError:
    """The child's error again, as its own class where that is known here."""
    classes = [EdgeError]
    for one in classes:
        classes += one.__subclasses__()
    found = next((one for one in classes if one.__name__ == code), None)
    return found(text) if found is not None else SelfTestError(f"{code}: {text}")


def limit_process(artefact_bytes: int, *, gpu: bool) -> None:
    """Bound what this process may take: processor seconds, file size, core dumps, and addresses unless a GPU maps them."""
    seconds = int(TIMEOUT_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if not gpu:  # a driver maps more than there is, and TensorRT writes the engine that it builds
        space = _SPACE_BYTES + _SPACE_PER_BYTE * artefact_bytes
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))


def _try(folder: Path) -> Outcome:
    try:
        manifest = parse_manifest((folder / "manifest.json").read_bytes())
        limit_process(sum(entry.size for entry in manifest.files), gpu=manifest.engine.name == "tensorrt")
        return Outcome(report=LocalPlace().verify(open_artefact(folder), warm=True))
    except EdgeError as error:
        return Outcome(code=type(error).__name__, error=str(error)[:2000])
    except (MemoryError, OSError) as error:
        return Outcome(code="SelfTestError", error=f"{type(error).__name__}: {error}"[:2000])


if __name__ == "__main__":
    os.nice(5)  # frames go on meanwhile
    sys.stdout.buffer.write(msgspec.json.encode(_try(Path(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # engines may not end well under limits
