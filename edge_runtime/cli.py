"""`edge-agent`: the command on a device. argparse only, so that a device installs no more than it needs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.errors import EdgeError, path_problem
from device_profiles.version import __version__
from edge_runtime.cli_llm import add_llm_worker
from edge_runtime.cli_observing import add_observing, open_tracer_of, samples_of, set_up_logging_of
from edge_runtime.cli_updating import add_check, add_confirming, launched_of

if TYPE_CHECKING:
    from edge_runtime.freshness import Anchor
    from edge_runtime.offload_options import OffloadOptions
    from edge_runtime.pipeline import PlanChoice
    from edge_runtime.tracing import Tracer


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit 0 when done, 1 after a named error, 2 on wrong usage, 130 at Ctrl-C."""
    parsed = build_parser().parse_args(arguments)
    set_up_logging_of(parsed.log_level)
    try:
        if arguments is None and parsed.command is _run and parsed.confirm_s > 0:
            from edge_runtime.launcher import launch

            launch(sys.argv[1:], parsed.state)  # returns when this agent is the one to run
        status = parsed.command(parsed)
    except KeyboardInterrupt:
        status = 130
    except EdgeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        status = 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader left
        status = 0
    except OSError as error:
        problem = path_problem(error)
        if problem is None:
            raise
        sys.stderr.write(f"{problem}\n")
        status = 1
    sys.exit(status)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="edge-agent", description="Run headtail's artefacts on this device.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="say that the device is there, take deployments, run frames")
    run.set_defaults(command=_run)
    run.add_argument("--broker", metavar="URL", help="mqtt://host:port; not needed once the device has enrolled")
    run.add_argument("--device", metavar="NAME", help="this device's name on the wire; not needed once enrolled")
    run.add_argument("--tenant", default="default")
    run.add_argument("--state", type=Path, default=default_state(), metavar="DIR", help="deployed artefacts")
    run.add_argument("--board", default="this", help="board id, as `headtail devices` lists them")
    run.add_argument("--head", type=Path, metavar="ARTEFACT", help="run this head, whatever was deployed")
    run.add_argument("--whole", type=Path, metavar="ARTEFACT", help="run this whole model (the head's fallback)")
    run.add_argument(
        "--plan", type=Path, metavar="FILE", help="plan.json of `headtail plan`: follow it as the link changes"
    )
    run.add_argument(
        "--plan-head",
        type=Path,
        action="append",
        default=[],
        metavar="ARTEFACT",
        help="a head that the plan may use, or the host's whole model",
    )
    run.add_argument("--source", metavar="SOURCE", help="dir:PATH, stdin, v4l2:DEVICE, rtsp:URL or module:function")
    run.add_argument("--fps", type=float, help="frames a second; as they come when not given")
    run.add_argument("--loop", action="store_true", help="begin a folder again when it ends")
    run.add_argument("--keep-all", action="store_true", help="run every frame instead of the newest")
    run.add_argument("--frames", type=int, help="stop after so many")
    run.add_argument("--deadline-ms", type=float, default=1000.0)
    run.add_argument("--layers", type=int, default=0, help="of a progressive head's stream, sent at most; 0 for all")
    run.add_argument("--qos", type=int, choices=[0, 1], default=0)
    run.add_argument("--threads", type=int, help="of the engine; the manifest's number when not given")
    add_observing(run)
    add_confirming(run)
    run.add_argument(
        "--insecure", action="store_true", help="without TLS and signatures although the broker is on another machine"
    )
    run.add_argument("--results", metavar="FILE|-", help="write results as JSON lines")
    verify = commands.add_parser("verify", help="check an artefact and run its golden vectors here")
    verify.set_defaults(command=_verify)
    verify.add_argument("artefact", type=Path)
    verify.add_argument("--json", action="store_true")
    add_check(commands, default_state())
    _add_joining(commands)
    _add_profile(commands)
    add_llm_worker(commands, default_state() / "llm")
    return parser


def default_state() -> Path:
    """Where deployed artefacts are kept: /var/lib/headtail for root, else the user's own state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/headtail")
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "headtail")


def _add_joining(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    enroll = commands.add_parser("enroll", help="join a fleet: make a key here, get a certificate for it")
    enroll.set_defaults(command=_enroll)
    enroll.add_argument("--url", required=True, help="https://host:port of `headtail pki serve`")
    enroll.add_argument(
        "--token", required=True, help="of `headtail pki token`; good once. - reads it from standard input"
    )
    enroll.add_argument("--device", required=True, metavar="NAME", help="the name to have")
    enroll.add_argument("--tenant", default="default")
    enroll.add_argument("--state", type=Path, default=default_state(), metavar="DIR")
    install = commands.add_parser("install", help="write a systemd unit that keeps the agent running")
    install.set_defaults(command=_install)
    install.add_argument("--folder", type=Path, metavar="DIR", help="instead of /etc/systemd/system")
    install.add_argument("--devices", action="store_true", help="let it use cameras and GPUs")
    install.add_argument(
        "--read", type=Path, action="append", default=[], metavar="DIR", help="a folder in a home that it may read"
    )
    install.add_argument("--memory-mb", type=int, default=1024, help="end it when it takes more")
    install.add_argument("run", nargs="*", metavar="-- ARGUMENT", help="of `edge-agent run`")
    trust = commands.add_parser("trust", help="run only what the keys of this file have signed, from now on")
    trust.set_defaults(command=_trust)
    trust.add_argument("file", type=Path, help="trust.json of `headtail keys trust`")
    trust.add_argument("--state", type=Path, default=default_state(), metavar="DIR")
    trust.add_argument(
        "--root", type=Path, metavar="FILE", help="N.root.json of `headtail keys root`: ask that repository too"
    )
    trust.add_argument("--metadata", metavar="URL", help="where its metadata is; https://HOST:8081/tuf of a fleet")
    trust.add_argument("--replace", action="store_true", help="even where the device has another key set")


def _add_profile(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    profile = commands.add_parser("profile", help="measure an artefact here: latency, kernels, memory, energy")
    profile.set_defaults(command=_profile)
    profile.add_argument("artefact", type=Path)
    profile.add_argument("--json", action="store_true", help="print the whole profile")
    profile.add_argument("--out", type=Path, metavar="FILE", help="write the whole profile as JSON")
    profile.add_argument("--threads", type=int, help="of the engine; the manifest's number when not given")
    profile.add_argument("--runs", type=int, default=100, help="at least so many, and two seconds")
    profile.add_argument("--minutes", type=float, default=0.0, help="run on for so long: does it slow down when warm?")
    profile.add_argument("--power", metavar="idle=W,active=W[,tx=W]", help="figures that you state; labelled as such")
    profile.add_argument("--power-csv", type=Path, metavar="FILE", help="log of a USB meter that records meanwhile")


def _run(arguments: argparse.Namespace) -> int:
    from edge_runtime.agent import Agent, AgentOptions
    from edge_runtime.artefact import open_artefact
    from edge_runtime.broker_url import hide_password
    from edge_runtime.ending import when_told_to_end
    from edge_runtime.results_file import ResultsFile
    from edge_runtime.sources import Newest, open_source

    offload_broker = _fill_in_identity(arguments)
    tracer = open_tracer_of(arguments)
    source = None
    if arguments.source is not None:
        frames = open_source(arguments.source, loop=arguments.loop)
        source = Newest(frames, fps=arguments.fps, keep_all=arguments.keep_all)
    results = None if arguments.results is None else ResultsFile(arguments.results)
    try:
        agent = Agent(
            AgentOptions(
                broker=arguments.broker,
                offload_broker=offload_broker,
                device=arguments.device,
                state=arguments.state,
                board=arguments.board,
                offload=_offload_options(arguments, tracer),
                plan=_read_plan(arguments),
                insecure=arguments.insecure,
                samples=samples_of(arguments),
                launched=launched_of(arguments),
            ),
            source=source,
            on_result=None if results is None else results.write,
            head=open_artefact(arguments.head) if arguments.head else None,
            whole=open_artefact(arguments.whole) if arguments.whole else None,
        )
        told = when_told_to_end(agent.stop)
        sys.stderr.write(f"edge-agent {arguments.device} runs; broker {hide_password(arguments.broker)}\n")
        sys.stderr.flush()
        agent.run(frames=arguments.frames)
    finally:
        if results is not None:
            results.close()
        if tracer is not None:
            tracer.close()
    if agent.restart_wanted and not told:
        from edge_runtime.launcher import restart

        restart()
    return 0


def _offload_options(arguments: argparse.Namespace, tracer: "Tracer | None") -> "OffloadOptions":
    from edge_runtime.offload_options import OffloadOptions

    return OffloadOptions(
        tenant=arguments.tenant,
        qos=arguments.qos,
        deadline_ms=arguments.deadline_ms,
        threads=arguments.threads,
        layers=arguments.layers,
        shadow_share=arguments.shadow,
        tracer=tracer,
    )


def _read_plan(arguments: argparse.Namespace) -> "PlanChoice | None":
    if arguments.plan is None:
        return None
    from device_profiles.plan_table import load_plan_table
    from edge_runtime.artefact import open_artefact
    from edge_runtime.pipeline import PlanChoice

    return PlanChoice(load_plan_table(arguments.plan), tuple(map(open_artefact, arguments.plan_head)))


def _verify(arguments: argparse.Namespace) -> int:
    import msgspec

    from edge_runtime.artefact import open_artefact
    from edge_runtime.places import LocalPlace

    report = LocalPlace().verify(open_artefact(arguments.artefact))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        versions = f"{report.engine} {report.installed or ''} (built with {report.built})"
        sys.stdout.write(f"{report.artefact}  {versions}  opened in {report.load_ms or 0:.0f} ms\n")
        if report.remark:
            sys.stdout.write(f"{report.remark}\n")
        for check in report.checks:
            word = "ok" if check.passed else "DIFFERS"
            sys.stdout.write(
                f"{word}  {', '.join(check.inputs)}  {check.compare}, worst {check.worst:g}, {check.ms or 0:.1f} ms\n"
            )
        if not report.checks:
            sys.stdout.write("no golden vectors: only hashes and the engine were checked\n")
    return 0 if report.passed else 1


def _enroll(arguments: argparse.Namespace) -> int:
    from edge_runtime.enrol import enrol

    token = sys.stdin.readline() if arguments.token == "-" else arguments.token
    identity = enrol(
        arguments.url, token, device=arguments.device, tenant=arguments.tenant, state=Path(arguments.state)
    )
    sys.stdout.write(
        f"{identity.device} of {identity.tenant} has joined; its broker is {identity.place.host}. Start it: edge-agent run\n"
    )
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from edge_runtime.identity import read_identity
    from edge_runtime.install import InstallError, InstallOptions, install

    wanted = build_parser().parse_args(["run", *arguments.run])  # says now what is wrong, not at every start
    if wanted.state != default_state():
        raise InstallError(
            f"Wanted the state where systemd keeps it for the unit, found --state {wanted.state}. Leave --state out."
        )
    options = InstallOptions(
        command=tuple(arguments.run),
        devices=arguments.devices,
        read=tuple(path.absolute() for path in arguments.read),
        memory_mb=arguments.memory_mb,
    )
    path = install(options, arguments.folder)
    sys.stdout.write(
        f"{path} is written. Start it now and at every boot:\n"
        "systemctl daemon-reload && systemctl enable edge-agent && systemctl restart edge-agent\n"
    )
    if None in (wanted.broker, wanted.device) and read_identity(wanted.state) is None:
        sys.stderr.write("It has no broker yet: enrol this device first (edge-agent enroll), as root.\n")
    return 0


def _fill_in_identity(arguments: argparse.Namespace) -> str | None:
    """Take broker and name from the device's identity unless they were given; the URL for offloaded requests, if any."""
    from edge_runtime.identity import IdentityError, broker_urls, read_identity

    identity = read_identity(arguments.state) if arguments.broker is None else None
    if identity is not None:
        arguments.broker, offload = broker_urls(identity, arguments.state)
        arguments.device, arguments.tenant = identity.device, identity.tenant
        return offload
    if arguments.broker is None or arguments.device is None:
        raise IdentityError(
            "Wanted --broker and --device, or a device that has enrolled (edge-agent enroll), found neither."
        )
    return None


def _trust(arguments: argparse.Namespace) -> int:
    from edge_runtime.freshness import install_anchor
    from edge_runtime.gate import TRUST_NAME, install_trust
    from edge_runtime.signature import TrustError, parse_trust_file

    path = arguments.state / TRUST_NAME
    try:
        found = parse_trust_file(arguments.file.read_bytes())
    except OSError as error:
        raise TrustError(f"Wanted a trust file of `headtail keys trust`, found: {error}.") from error
    if path.exists() and not arguments.replace:
        raise TrustError(f"Wanted a device without a key set, found {path}. --replace trusts the new one instead.")
    anchor = _read_anchor_of(arguments)
    install_trust(path, found)
    if anchor is not None:
        install_anchor(arguments.state, anchor)
    names = ", ".join(key.name for key in found.newest.keys)
    sys.stdout.write(f"{path}: {found.newest.threshold} of {names} must sign (key set {found.newest.version})\n")
    return 0


def _read_anchor_of(arguments: argparse.Namespace) -> "Anchor | None":
    from edge_runtime.freshness import AnchorError, read_root

    if (arguments.root is None) != (arguments.metadata is None):
        raise AnchorError("Wanted --root and --metadata together, found one of them.")
    return None if arguments.root is None else read_root(arguments.root, arguments.metadata)


def _profile(arguments: argparse.Namespace) -> int:
    from device_profiles.measurement import dump_profile
    from edge_runtime.artefact import open_artefact
    from edge_runtime.profile_text import describe
    from edge_runtime.profiler import ProfileOptions, profile_artefact

    options = ProfileOptions(
        threads=arguments.threads,
        runs=arguments.runs,
        minutes=arguments.minutes,
        power=arguments.power,
        power_csv=arguments.power_csv,
    )

    def say(step: str) -> None:
        sys.stderr.write(f"measuring {step} ..\n")

    profile = profile_artefact(open_artefact(arguments.artefact), options, on_step=say)
    if arguments.out is not None:
        arguments.out.write_bytes(dump_profile(profile))
    sys.stdout.write(dump_profile(profile).decode() if arguments.json else describe(profile))
    return 0


if __name__ == "__main__":
    main()
