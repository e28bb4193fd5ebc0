"""`edge-agent llm-worker`: be one rank of a language model."""

import argparse
import importlib
import socket
from pathlib import Path

from device_profiles.errors import MissingDependencyError


def add_llm_worker(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", store: Path) -> None:
    """Add the command; `store` is where weights are kept unless it is told otherwise."""
    worker = commands.add_parser("llm-worker", help="be one rank of a language model (needs headtail[llm])")
    worker.set_defaults(command=_llm_worker)
    worker.add_argument("--listen", required=True, metavar="HOST:PORT", help="where the master reaches this node")
    worker.add_argument("--key", type=Path, required=True, metavar="FILE", help="the cluster's, of `headtail llm key`")
    worker.add_argument("--store", type=Path, default=store, metavar="DIR", help="weights are kept here")
    worker.add_argument("--memory-limit", metavar="SIZE", help="as in 512MB; kept, or refused with what would work")
    worker.add_argument("--threads", type=int, help="of torch")
    worker.add_argument(
        "--release-s", type=float, default=30.0, help="weights are kept so long for a master that comes back"
    )
    worker.add_argument("--broker", metavar="URL", help="announce this node there")
    worker.add_argument("--name", help="as in the nodes file; the host's name when not given")
    worker.add_argument("--tenant", default="default")
    worker.add_argument(
        "--advertise", metavar="HOST:PORT", help="where others reach this node, if not as the broker does"
    )


def _llm_worker(arguments: argparse.Namespace) -> int:
    try:  # named by a string: a device that runs no language model has neither the package's parts nor torch
        serving = importlib.import_module("orchestrator.tensor_parallel.serving")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Wanted {error.name} for llm-worker, found none. pip install 'headtail[llm]'"
        ) from error
    announce = None
    if arguments.broker is not None:
        name = arguments.name or socket.gethostname()
        announce = serving.Announce(arguments.broker, name, arguments.tenant, arguments.advertise)
    serving.run_worker(
        listen=arguments.listen,
        key_file=arguments.key,
        store=arguments.store,
        memory_limit=arguments.memory_limit,
        threads=arguments.threads,
        release_s=arguments.release_s,
        announce=announce,
    )
    return 0
