"""`headtail demo`: the main job, start to end, on this machine."""

import sys
import time
from pathlib import Path

from orchestrator.commands.output import print_json, print_table
from orchestrator.commands.serving import interruptible
from orchestrator.demo.pair import PairDemo, PairOutcome, run_pair
from orchestrator.demo.photos import class_name
from orchestrator.demo.story import DemoOptions, Outcome, run_story


def demo(
    *,
    pair: tuple[Path, Path] | None = None,
    pictures: Path | None = None,
    link: str = "5mbit/20ms",
    layers: int = 0,
    out: Path = Path("demo"),
    rounds: int = 5,
    json: bool = False,
) -> None:
    """Export, cut, deploy and run EfficientNet-Lite0 on photographs, then a trained pair; write a report.

    Args:
        pair: Run only this trained pair: the folders of its head and tail.
        pictures: For the pair: a folder, with one folder for each class where labels are known; those that ship with the
            pair of headtail by default.
        link: Emulated link of the device, rate/one-way delay, or "none".
        layers: Of a progressive pair's stream, sent at most; 0 for all.
        out: Folder for everything that the demo writes.
        rounds: How often each photograph is classified in each way.
        json: Print the table as JSON.
    """
    begun = time.monotonic()

    def say(line: str) -> None:
        if not json:
            sys.stdout.write(f"[{time.monotonic() - begun:5.1f} s] {line}\n")
            sys.stdout.flush()

    trained = _pair_demo(pair, pictures, link, layers)
    with interruptible():
        outcome = run_story(DemoOptions(folder=out, link=link, rounds=rounds), say) if pair is None else None
        found = run_pair(trained, out, say)
    if json:
        story = {} if outcome is None else {"link": link, "rows": outcome.rows, "verdict": outcome.verdict}
        print_json({**story, "pair": found})
        return
    if outcome is not None:
        _print(outcome, link)
    _print_pair(found, link)
    say("Done")


def _pair_demo(pair: tuple[Path, Path] | None, pictures: Path | None, link: str, layers: int) -> PairDemo:
    """The pair that ships with headtail, or the user's."""
    shipped = PairDemo(link=link)
    head, tail = pair or (shipped.head, shipped.tail)
    return PairDemo(head=head, tail=tail, pictures=pictures or shipped.pictures, link=link, layers=layers)


def _print_pair(found: PairOutcome, link: str) -> None:
    row = (f"{found.bytes_mean:.0f}", found.bytes_largest)
    times = (found.head_ms, found.encode_ms, found.link_ms, found.tail_ms, found.total_ms)
    columns = ("pictures", "bytes, mean", "largest", "head", "encode", "link", "tail", "total")
    title = f"A trained pair, link {link} (rate/one-way delay, emulated): bytes of requests, median ms"
    print_table(title, columns, [(str(found.pictures), *row, *(f"{one:.1f}" for one in times))], numbers=True)
    if found.early:
        sys.stdout.write(
            f"{found.early} of {found.pictures} pictures were answered by the head's exit and sent nothing.\n"
        )
    if found.right is not None:
        sys.stdout.write(f"Right: {found.right} of {found.labelled} pictures with a known class.\n")
    sys.stdout.write(found.remark + "\n")


def _print(outcome: Outcome, link: str) -> None:
    labels = [(name, class_name(top1), f"{100 * share:.0f} %") for name, top1, share in outcome.labels]
    print_table("What the photographs show (fp32 model)", ("photograph", "label", "probability"), labels)
    rows = [
        (
            row.name,
            f"{row.payload_bytes:,}",
            *(f"{value:.1f}" for value in (row.device_ms, row.host_ms, row.broker_ms, row.link_ms, row.total_ms)),
            f"{100 * row.agreement:.0f} %",
        )
        for row in outcome.rows
    ]
    columns = ("way", "bytes", "device", "host", "broker", "link", "total", "agrees")
    title = f"One picture, link {link} (rate/one-way delay, emulated): bytes, median ms, top-1 as in fp32"
    print_table(title, columns, rows, numbers=True)
    sys.stdout.write(outcome.verdict + "\n")
    outage = outcome.outage
    sys.stdout.write(
        f"Broker stopped while streaming: {len(outage.before)} pictures answered by head and tail before, {len(outage.after)} "
        f"by the fallback on the device after; {outage.late} missed the deadline of {outage.deadline_ms:.0f} ms.\n"
        f"Report: {outcome.report}\n"
    )
