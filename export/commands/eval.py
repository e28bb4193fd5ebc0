"""`headtail eval`: accuracy against bytes of pairs, beside JPEG, WebP, raw pixels and no split."""

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.pipeline import read_labels
from export.commands.output import print_json, wide_console
from export.evaluate import EvaluationError
from export.evaluation import LINKS, Evaluation, EvaluationOptions, evaluate_pairs
from export.evaluation_report import sentences, write_report
from export.originals import open_originals
from export.variant_export import dump_variants, to_variants
from split.training_data import DataOptions, some

Pairs = dict[str, tuple[Artefact, Artefact]]


def evaluate(
    *artefacts: Path,
    data: str,
    whole: Path | None = None,
    label_key: str = "",
    strict: bool = False,
    codecs: bool = True,
    link: tuple[str, ...] = LINKS,
    out: Path | None = None,
    variants: Path | None = None,
    json: bool = False,
) -> None:
    """Measure pairs on labelled pictures; several pairs at once give a curve.

    Args:
        artefacts: Folders that `headtail split` wrote (head, tail and whole in them), or heads and tails by themselves.
        data: Labelled pictures: a folder by class, an .npz, or module:function. Each artefact resizes and crops them by
            itself, as on the device.
        whole: The unsplit network; that of the first folder by default.
        label_key: Array of an .npz that holds the class ids.
        strict: A damaged picture is an error; otherwise it is skipped and counted.
        codecs: Compare with JPEG and WebP of the same pictures.
        link: Rate/round trip, as 1mbit/40ms; several for several.
        out: Folder for report.json, report.html and the charts.
        variants: Write the pairs, with rates, accuracy and times on this machine, for `headtail plan --variants`.
        json: Print JSON instead of a table.
    """
    pairs, found_whole = find_pairs(artefacts, whole)
    _, tail = next(iter(pairs.values()))
    labels = read_labels(tail)
    options = DataOptions(1, label_key=label_key, strict=strict, classes=tail.manifest.outputs[0].shape[-1])
    pictures = open_originals(data, options, labels)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=json or not console.is_terminal) as progress:
        task = progress.add_task("")
        found = evaluate_pairs(
            pairs,
            found_whole,
            pictures,
            EvaluationOptions(
                data=data,
                codecs=codecs,
                links=link,
                on_way=lambda name, count: progress.update(task, description=name, completed=0, total=count),
                on_picture=lambda done: progress.update(task, completed=done),
            ),
        )
    if out is not None:
        write_report(found, out, title=f"Accuracy against bytes: {', '.join(pairs)}")
    if variants is not None:
        variants.write_bytes(dump_variants(to_variants(found, {name: pair[0] for name, pair in pairs.items()})))
    if json:
        print_json(found)
        return
    print_evaluation(found)
    if out is not None:
        sys.stdout.write(f"Report: {out / 'report.html'}\n")


def find_pairs(paths: tuple[Path, ...], whole: Path | None) -> tuple[Pairs, Artefact | None]:
    """Heads with the tails that accept them, by name, and the whole network if there is one.

    Raises:
        EvaluationError: No head, or a head without its tail.
        EdgeError: An artefact is not valid.
    """
    opened: list[tuple[str, Artefact]] = []
    for path in paths:
        inside = [path / role for role in ("head", "tail", "whole") if (path / role).is_dir()]
        opened += [(path.name if inside else one.parent.name, open_artefact(one)) for one in inside or [path]]
    tails = [one for _, one in opened if one.manifest.role == "tail"]
    pairs: Pairs = {}
    for name, head in opened:
        if head.manifest.role != "head":
            continue
        fitting = [one for one in tails if one.manifest.cut is not None and head.key in one.manifest.cut.accepts]
        if not fitting:
            raise EvaluationError(
                f"Wanted a tail that accepts the cut {head.key} of {head.folder}, found none. Name it too."
            )
        pairs[name if name not in pairs else f"{name} {head.key[:6]}"] = (head, fitting[0])
    if not pairs:
        raise EvaluationError(f"Wanted at least one head and its tail, found {[str(one) for one in paths]}.")
    wholes = [one for _, one in opened if one.manifest.role == "whole"]
    return pairs, open_artefact(whole) if whole is not None else next(iter(wholes), None)


def print_evaluation(found: Evaluation) -> None:
    """The table and the findings, for people."""
    console = wide_console()
    table = Table(title=f"{found.pictures} pictures of {found.data}", title_justify="left")
    for name in (
        "way",
        "right",
        "95 %",
        "ECE",
        "lost",
        "bytes",
        "p50",
        "p95",
        "device ms",
        "host ms",
        "head size",
        "MACs",
    ):
        table.add_column(name, justify="left" if name == "way" else "right", no_wrap=True)
    for row in found.ways:
        table.add_row(
            row.name,
            f"{100 * row.accuracy:.1f} %",
            "{:.1f}-{:.1f}".format(*(100 * one for one in row.accuracy_interval)),
            f"{row.ece:.3f}",
            f"{100 * row.loss:.1f}",
            f"{row.bytes_mean:.0f}",
            f"{row.bytes_p50:.0f}",
            f"{row.bytes_p95:.0f}",
            f"{row.device_ms + row.encode_ms:.2f}",
            f"{row.decode_ms + row.host_ms:.2f}",
            "-" if row.cost is None else f"{row.cost.flash_bytes / 1000:.1f} kB",
            "-" if row.cost is None else f"{row.cost.macs / 1e6:.1f} M",
        )
    console.print(table)
    if found.skipped:
        console.print(f"{found.skipped} damaged pictures were skipped: {some(found.skipped_names)}.", highlight=False)
    for line in (
        *sentences(found),
        *(f"{one.link}: {one.fastest} is fastest, {one.ms[one.fastest]:.1f} ms." for one in found.links),
    ):
        console.print(line, highlight=False, soft_wrap=True)
