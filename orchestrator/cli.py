"""The root of `headtail`: every command is named as a string and imported when it runs, so no import edge exists."""

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

# command -> (function, one line of help); the help is given here, so that --help imports none of them
COMMANDS = {
    "devices": ("orchestrator.commands.devices:devices", "Boards that are known, and what is known of them."),
    "export": ("export.commands.export:export", "Turn a model into an artefact for a board."),
    "split": ("export.commands.split:split", "Cut a network into head and tail, or train a bottleneck at the cut."),
    "eval": ("export.commands.eval:evaluate", "Accuracy against bytes of pairs, beside JPEG, WebP and no split."),
    "plan": ("export.commands.plan:plan", "Choose between local, cut here and send the picture, over a link."),
    "inspect": ("orchestrator.commands.inspect:inspect", "Show what an artefact says of itself."),
    "verify": ("orchestrator.commands.verify:verify", "Check an artefact and run its golden vectors."),
    "profile": ("orchestrator.commands.profiling:profile", "Measure an artefact: latency, kernels, memory, energy."),
    "calibrate": ("export.commands.calibrate:calibrate", "Measure small networks, to predict others on this board."),
    "fit": ("export.commands.fit:fit", "Say whether an artefact fits a board, with the gap in bytes."),
    "broker": ("orchestrator.commands.broker:broker", "Start an MQTT broker for devices and tails."),
    "deploy": ("orchestrator.commands.deploy:deploy", "Send an artefact to a device and activate it."),
    "agent-bundle": ("orchestrator.commands.agent_bundle:agent_bundle", "Bundle the agent, to update it on devices."),
    "sign": ("orchestrator.commands.keys:sign", "Vouch for an artefact with signing keys."),
    "demo": ("orchestrator.commands.demo:demo", "Run the main job, start to end, on this machine."),
}
GROUPS = {
    "pki": (
        "The fleet's certificates, and how devices get theirs.",
        {
            "init": ("orchestrator.commands.pki:init", "Make the fleet's certificate authority."),
            "token": ("orchestrator.commands.pki:token", "Print a token with which one device may enrol."),
            "serve": ("orchestrator.commands.pki:serve", "Let devices enrol over HTTPS."),
            "revoke": ("orchestrator.commands.pki:revoke", "Refuse a device's certificates from now on."),
        },
    ),
    "keys": (
        "Signing keys, and the key sets that devices trust.",
        {
            "new": ("orchestrator.commands.keys:new", "Make a signing key."),
            "trust": ("orchestrator.commands.keys:trust", "Write the first key set for devices."),
            "rotate": ("orchestrator.commands.keys:rotate", "Replace keys of a key set."),
            "show": ("orchestrator.commands.keys:show", "Show the key set of a trust file."),
            "root": ("orchestrator.commands.keys:root", "Make or sign the fleet's TUF repository."),
            "withdraw": ("orchestrator.commands.keys:withdraw", "Take a version out of the TUF repository."),
        },
    ),
    "fleet": (
        "Run and watch a fleet of devices.",
        {
            "up": ("orchestrator.commands.fleet_up:up", "Start broker, orchestrator, dashboard and tails."),
            "simulate": ("orchestrator.commands.fleet_up:simulate", "Simulate devices with real MQTT connections."),
            "add": ("orchestrator.commands.fleet_add:add", "Register artefacts as a version that can be rolled out."),
            "devices": ("orchestrator.commands.fleet:devices", "List devices with what they run."),
            "groups": ("orchestrator.commands.fleet:groups", "List or make groups."),
            "label": ("orchestrator.commands.fleet:label", "Set labels of devices."),
            "rollout": ("orchestrator.commands.fleet_rollout:rollout", "Bring a version to devices in stages."),
            "pause": ("orchestrator.commands.fleet_rollout:pause", "Hold a rollout."),
            "resume": ("orchestrator.commands.fleet_rollout:resume", "Go on with a rollout."),
            "approve": ("orchestrator.commands.fleet_rollout:approve", "Let a rollout begin its next stage."),
            "rollback": ("orchestrator.commands.fleet_rollout:rollback", "Take a rollout back."),
            "status": ("orchestrator.commands.fleet:status", "Show the fleet and its rollouts."),
            "jobs": ("orchestrator.commands.fleet:jobs", "List jobs."),
            "job": ("orchestrator.commands.fleet:job", "Queue a job for devices."),
            "cancel": ("orchestrator.commands.fleet:cancel", "Cancel a job."),
            "config": ("orchestrator.commands.fleet:config", "Set keys of remote configuration."),
            "logs": ("orchestrator.commands.fleet:logs", "Show the end of a service's log."),
            "audit": ("orchestrator.commands.fleet:audit", "Show or check the audit log."),
            "top": ("orchestrator.commands.fleet_top:top", "Watch devices, models and tails in the terminal."),
            "doctor": ("orchestrator.commands.fleet_doctor:doctor", "Look for what usually goes wrong."),
        },
    ),
    "tail": (
        "Serve tails on the host.",
        {"serve": ("orchestrator.commands.tail:serve", "Answer the requests of heads over MQTT.")},
    ),
    "llm": (
        "Run one language model over several devices.",
        {
            "key": ("orchestrator.commands.llm:key", "Make the key file that the nodes of a cluster share."),
            "plan": ("orchestrator.commands.llm:plan", "Say who would hold what, and whether one device is faster."),
            "shard": ("orchestrator.commands.llm:shard", "Cut a checkpoint: one file for each node."),
            "nodes": (
                "orchestrator.commands.llm_watch:nodes",
                "List the workers that announce themselves at a broker.",
            ),
            "serve": ("orchestrator.commands.llm:serve", "Answer an OpenAI-compatible API over the nodes."),
            "top": ("orchestrator.commands.llm_watch:top", "Show the nodes of a running server, live."),
            "kernels": ("orchestrator.commands.llm_watch:kernels", "Show which kernels won on this machine."),
            "trace": (
                "orchestrator.commands.llm_watch:trace",
                "What every rank does for one token, as a Chrome trace.",
            ),
            "demo": ("orchestrator.commands.llm:demo", "Three workers, a server, a question, a worker killed."),
        },
    ),
}

_OWN_PACKAGES = ("device_profiles", "edge_runtime", "export", "orchestrator", "split")
# library -> extra, where it is not the one of the command's package
_EXTRAS = {
    "ai_edge_litert": "export-mcu",
    "matplotlib": "report",
    "paho": "orchestrator",
    "prometheus_client": "dashboard",
    "psycopg": "postgres",
    "skimage": "demo",
    "sklearn": "demo",
    "starlette": "dashboard",
    "torch": "export",
    "uvicorn": "dashboard",
    "zmq": "direct",
    **dict.fromkeys(("gguf", "safetensors", "tokenizers"), "llm"),
}


def main() -> None:
    """Run one command; exit 0 when done, 1 after a named error, 2 on wrong usage."""
    if importlib.util.find_spec("cyclopts") is None or importlib.util.find_spec("rich") is None:
        sys.stderr.write("headtail: the command line needs cyclopts and rich: pip install 'headtail[cli]'\n")
        sys.exit(2)
    sys.exit(run())


def run(tokens: list[str] | None = None) -> int:
    """Run the command in `tokens` (the process's arguments by default) and return the exit status."""
    from cyclopts import CycloptsError

    from device_profiles.errors import EdgeError, path_problem

    try:
        result = build_app()(tokens, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return 2
    except EdgeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    except ImportError as error:
        advice = _missing_library(error)
        if advice is None:
            raise
        sys.stderr.write(f"MissingDependencyError: {advice}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader left; nothing more can be said to it
        return 0
    except OSError as error:
        problem = path_problem(error)
        if problem is None:
            raise
        sys.stderr.write(f"{problem}\n")
        return 1
    return result if isinstance(result, int) else 0


def _missing_library(error: ImportError) -> str | None:
    """Which extra brings the library that a command's module imports; null when it is none of others'."""
    cause = error.__cause__  # the command's module was named by what could not import it
    if not isinstance(cause, ModuleNotFoundError) or cause.name is None:
        return None
    library = cause.name.split(".")[0]
    if library in _OWN_PACKAGES:
        return None
    extra = _EXTRAS.get(library, "export" if "'export." in str(error) else "orchestrator")
    return f"Wanted the library {library} for this command, found no such module. Install it: pip install 'headtail[{extra}]'."


def build_app() -> "App":
    """The application with all commands, none of them imported yet."""
    from cyclopts import App

    from device_profiles.version import __version__

    app = App(name="headtail", version=__version__, help="Get models to run on the devices people really have.")
    for name, (target, help_line) in COMMANDS.items():
        app.command(target, name=name, help=help_line)
    for group, (group_help, commands) in GROUPS.items():
        sub = App(name=group, help=group_help)
        for name, (target, help_line) in commands.items():
            sub.command(target, name=name, help=help_line)
        app.command(sub)
    return app
