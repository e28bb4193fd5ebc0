"""The demo from start to end: build, serve, compare, pull the plug, report."""

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from orchestrator.demo.build import Built, build
from orchestrator.demo.device import Plan
from orchestrator.demo.outage import Outage, show_outage
from orchestrator.demo.photos import PHOTOS
from orchestrator.demo.processes import Children, headtail
from orchestrator.demo.report import Report, render
from orchestrator.demo.strategies import Row, Sample, summarise, total_at_rate_ms, verdict
from orchestrator.link_proxy import Link, LinkProxy, parse_link

DEADLINE_MS = 400.0
NOTES = (
    "Device and host are processes of one machine, with one engine thread each: on a Raspberry Pi or a microcontroller the "
    "device's times are longer, and the balance moves towards the host.",
    "The network was quantised with crops of these same photographs, and agreement is counted over them alone: with so few "
    "pictures it says that nothing broke, and is no accuracy. JPEG and WebP at this quality move close calls.",
    "The link is emulated by a proxy with a rate and a delay; it loses nothing. Broker ms is what a request costs without the "
    "emulated link beyond device and host, link ms what the link adds.",
)


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose."""

    folder: Path
    link: str
    rounds: int


@dataclass(frozen=True)
class Outcome:
    """What the demo found out."""

    rows: Sequence[Row]
    verdict: str
    outage: Outage
    labels: Sequence[tuple[str, int, float]]  # photograph, top-1 class of fp32, probability
    report: Path


def run_story(options: DemoOptions, say: Callable[[str], None]) -> Outcome:
    """Run everything; no process is left behind, however it ends.

    Args:
        options: See `DemoOptions`.
        say: Told what comes next, one line each.

    Raises:
        ChildError: A command failed.
        LinkError: `link` is not a link.
        OutageError: The stream did not survive the broker's end.
    """
    link = parse_link(options.link)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with Children(folder / "logs") as children:
        say("Exporting EfficientNet-Lite0 as fp32 and int8, and cutting the int8 network")
        built = build(folder, children)
        say("Starting the broker and the tail server")
        url = _start_host(children, built)
        target = urlsplit(url)
        with LinkProxy((target.hostname or "127.0.0.1", target.port or 1883), link) as proxy:
            say(
                f"Classifying {len(built.pictures)} photographs in {len(built.strategies)} ways, {options.rounds} times each"
            )
            direct = _measure(folder, children, built, url, options.rounds)
            linked = _measure(folder, children, built, proxy.url, options.rounds) if link else direct
            say("Deploying to an agent that streams, then stopping the broker")
            outage = show_outage(folder, children, built, device_url=proxy.url, broker_url=url, deadline_ms=DEADLINE_MS)
    rows = summarise(built.strategies, direct, linked, built.strategies[0].name)
    return _conclude(options, link, rows, direct, outage)


def _start_host(children: Children, built: Built) -> str:
    line = children.start("broker", headtail("broker", "--port", "0"), ready="mqtt://")
    url = next(word.rstrip(";") for word in line.split() if word.startswith("mqtt://"))
    served = [*built.tails, built.whole_fp32]
    children.start(
        "tail", headtail("tail", "serve", *map(str, served), "--broker", url, "--threads", "1"), ready="serving"
    )
    return url


def _measure(folder: Path, children: Children, built: Built, url: str, rounds: int) -> list[Sample]:
    plan = Plan(strategies=built.strategies, pictures=tuple(map(str, built.pictures)), rounds=rounds)
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    output = children.run("device", [sys.executable, "-m", "orchestrator.demo.device", str(path), url])
    return [msgspec.json.decode(line, type=Sample) for line in output.splitlines()]


def _conclude(
    options: DemoOptions, link: Link | None, rows: list[Row], direct: list[Sample], outage: Outage
) -> Outcome:
    delay_ms = 1000 * link.delay_s if link else 0.0
    words = f"{options.link} (rate, one-way delay)" if link else "loopback, no emulated link"
    sentence = verdict(rows, delay_ms, f"a link of {options.link}" if link else "loopback")
    reference = {s.picture: s for s in direct if s.strategy == rows[0].name}
    tops = [(photo, reference[index].top1, reference[index].probability) for index, photo in enumerate(PHOTOS)]
    rates = [10 ** (exponent / 10) for exponent in range(-10, 31)]  # Mbit/s
    report = Report(
        link=words,
        machine=f"{_processor()}, {platform.system()} {platform.machine()}",
        versions=", ".join(f"{name} {version(name)}" for name in ("headtail", "onnxruntime", "paho-mqtt", "numpy")),
        verdict=sentence,
        rows=rows,
        pictures=tops,
        rate_curve={row.name: [(rate, total_at_rate_ms(row, rate * 1e6, delay_ms)) for rate in rates] for row in rows},
        outage=outage.points(),
        outage_deadline_ms=outage.deadline_ms,
        notes=NOTES,
    )
    page = options.folder / "report.html"
    page.write_text(render(report), encoding="utf-8")
    (options.folder / "rows.json").write_bytes(msgspec.json.encode({"link": options.link, "rows": rows}))
    return Outcome(rows, sentence, outage, [(photo.name, top1, share) for photo, top1, share in tops], page)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return models[0] if models else platform.processor()
