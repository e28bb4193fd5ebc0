"""`headtail split`: list the cuts of a quantised network, write the head and tail of one, or train a bottleneck."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from device_profiles import load_board
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import MAX_TENSORS
from export.commands.output import print_json, wide_console
from export.commands.train_flags import TrainFlags, trains
from export.cut_pair import PairOptions, write_pair
from export.cut_source import OTHER_REMARK, CutSource, open_cut_source
from export.picture_sizes import QUALITY, PictureSizes, measure_picture
from export.samples import SampleSet, open_samples
from split.cuts import Cut, CutError, CutList, cut_at, find_cuts


def split(
    model: Path,
    /,
    *,
    show: Annotated[bool, Parameter(name="--list")] = False,
    at: str | None = None,
    out: Path = Path("cut"),
    image: Path | None = None,
    fallback: Path | None = None,
    target: str | None = None,
    tail_target: str = "this",
    codec: Literal["raw", "rans"] = "raw",
    calibration: Path | None = None,
    max_tensors: int = MAX_TENSORS,
    training: Annotated[TrainFlags | None, Parameter(name="*")] = None,
    json: bool = False,
) -> None:
    """Cut an exported, quantised network into head and tail, or train a bottleneck (--method, --layer, --data).

    Args:
        model: An artefact of a whole int8 network, or a bare int8 .onnx or .tflite file; to train, module:function.
        show: List every legal cut: head size, multiply-accumulates, payload against a JPEG and a WebP of the input.
        at: Write the pair cut at this tensor, at several (separated by commas), or at a row number of --list.
        out: Folder in which the artefacts head/ and tail/ are written.
        image: A picture for the comparison; the default is one that ships with headtail.
        fallback: The artefact of a whole network that the device runs when the tail does not answer.
        target: Board of the head; the artefact's own by default, "this" for a bare file. For a microcontroller, head/
            is a C project too: network, entropy coder, and one function that writes the frame.
        tail_target: Board of the tail.
        codec: How the crossing integers travel: as they are, or entropy coded (smaller; needs --calibration).
        calibration: A folder of pictures, or an .npz of inputs or pictures, on which the entropy tables are counted.
        max_tensors: List only cuts with at most this many crossing tensors.
        training: See `TrainFlags`.
        json: Print JSON instead of a table.
    """
    cutting: dict[str, object] = {"--at": at, "--image": image, "--fallback": fallback, "--calibration": calibration}
    given = {word: value is not None for word, value in cutting.items()}
    given |= {"--list": show, "--codec": codec != "raw", "--max-tensors": max_tensors != MAX_TENSORS}
    if training is not None and trains(training, given):
        from export.commands.train import train_command  # torch: only where something is trained

        train_command(str(model), training, out=out, target=target or "this", tail_target=tail_target, json=json)
        return
    source = open_cut_source(model)
    if at is None:
        sizes = measure_picture(source.inputs, _preprocessing(source), image)
        cuts = find_cuts(source.graph, max_tensors=max_tensors)
        print_json(_list_report(source, cuts, sizes)) if json else _print_list(source, cuts, sizes)
        return
    if show:
        raise CutError("Wanted --list or --at, found both. --list shows the cuts, --at writes one.")
    own = source.artefact.manifest.target if source.artefact else "this"
    board = load_board(target or own)
    options = PairOptions(
        out=out,
        head_target=board.id,
        microcontroller=board if board.is_microcontroller else None,
        tail_target=load_board(tail_target).id,
        fallback=open_artefact(fallback).id if fallback else None,
        calibration=_tables_from(codec, calibration),
    )
    cut = _chosen(source, at, max_tensors)
    report = _pair_report(source, cut, write_pair(source, cut, options))
    report["microcontroller"] = options.microcontroller is not None
    if options.microcontroller is not None and source.remark is None:
        report["remark"] = OTHER_REMARK.format(engine="tflite-micro")
    print_json(report) if json else _print_pair(report, source.checked_on)


def _tables_from(codec: str, calibration: Path | None) -> SampleSet | None:
    if (codec == "rans") != (calibration is not None):
        raise CutError("Wanted --codec rans together with --calibration DATA, found one without the other.")
    return None if calibration is None else open_samples(calibration)


def _pair_report(source: CutSource, cut: Cut, pair: tuple[Artefact, Artefact]) -> dict[str, Any]:
    head, tail = pair
    return {
        "cut_id": head.key,
        "cut": _cut_report(None, cut),
        "head": {"folder": str(head.folder), "id": head.id, "bytes": head.entry.stat().st_size},
        "tail": {"folder": str(tail.folder), "id": tail.id, "bytes": tail.entry.stat().st_size},
        "equal_inputs": len(head.manifest.golden),
        "checked_on": source.checked_on,
        "remark": source.remark,
    }


def _preprocessing(source: CutSource) -> Any:  # noqa: ANN401 - Preprocessing or null
    return source.artefact.manifest.preprocessing if source.artefact else None


def _chosen(source: CutSource, at: str, max_tensors: int) -> Cut:
    """The cut at these tensor names, or at this row of the list."""
    if at.isdecimal() and at not in source.graph.tensors:
        cuts = find_cuts(source.graph, max_tensors=max_tensors).cuts
        if int(at) >= len(cuts):
            raise CutError(f"Wanted a row of --list (0 to {len(cuts) - 1}), found --at {at}.")
        return cuts[int(at)]
    if at in source.graph.tensors:  # a name may hold a comma
        return cut_at(source.graph, [at])
    return cut_at(source.graph, [name.strip() for name in at.split(",") if name.strip()])


def _cut_report(row: int | None, cut: Cut, sizes: PictureSizes | None = None) -> dict[str, Any]:
    """One cut for JSON; a key is there only where it has a meaning."""
    report: dict[str, Any] = {
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "scale": tensor.quantisation.scale if tensor.quantisation else None,
                "zero_point": tensor.quantisation.zero_point if tensor.quantisation else None,
            }
            for tensor in cut.tensors
        ],
        "head_macs": cut.head_macs,
        "tail_macs": cut.tail_macs,
        "head_bytes": cut.head_bytes,
        "payload_bytes": cut.payload_bytes,
        "wire_bytes": cut.wire_bytes,
    }
    if row is not None:
        report["row"] = row
    if sizes is not None:
        report["payload_of_jpeg"] = round(cut.payload_bytes / sizes.jpeg_bytes, 4)
        report["payload_of_webp"] = round(cut.payload_bytes / sizes.webp_bytes, 4)
    return report


def _list_report(source: CutSource, cuts: CutList, sizes: PictureSizes | None) -> dict[str, Any]:
    return {
        "model": source.name,
        "engine": source.engine,
        "checked_on": source.checked_on,
        "picture": None if sizes is None else vars(sizes) | {"quality": QUALITY},
        "complete": cuts.complete,
        "remark": source.remark,
        "cuts": [_cut_report(row, cut, sizes) for row, cut in enumerate(cuts.cuts)],
    }


def _print_list(source: CutSource, cuts: CutList, sizes: PictureSizes | None) -> None:
    console = wide_console()
    if not cuts.cuts:
        console.print(f"{source.name}: no legal cut. Every quantised tensor leaves another way from input to output.")
        return
    total = cuts.cuts[0].head_macs + cuts.cuts[0].tail_macs
    table = Table(title=f"Cuts of {source.name} ({_macs(total)} MACs) on {source.engine.name}", title_justify="left")
    for name in ("row", "head MACs", "", "head size", "payload", "of JPEG", "of WebP", "shape"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("--at", overflow="fold")
    for row, cut in enumerate(cuts.cuts):
        table.add_row(
            str(row),
            _macs(cut.head_macs),
            f"{100 * cut.head_macs / total:.0f}%" if total else "",
            _size(cut.head_bytes),
            _size(cut.payload_bytes),
            f"{cut.payload_bytes / sizes.jpeg_bytes:.2f}x" if sizes else "-",
            f"{cut.payload_bytes / sizes.webp_bytes:.2f}x" if sizes else "-",
            "\n".join("x".join(map(str, tensor.shape[1:])) for tensor in cut.tensors),
            ",\n".join(cut.names),
        )
    console.print(table)
    for line in _notes(source, cuts, sizes):
        console.print(line, highlight=False, soft_wrap=True)


def _notes(source: CutSource, cuts: CutList, sizes: PictureSizes | None) -> list[str]:
    overhead = cuts.cuts[0].wire_bytes - cuts.cuts[0].payload_bytes
    lines = [
        f"Payload: the tensors' raw bytes; a request adds {overhead} B (envelope, frame) and 8 B for each further tensor. "
        "Head size: weights and biases. `--at ROW` or `--at NAME,NAME` writes a pair."
    ]
    if sizes is not None:
        lines.append(
            f"Compared with {sizes.name} at {sizes.height} x {sizes.width}, quality {QUALITY}: "
            f"JPEG {sizes.jpeg_bytes} B, WebP {sizes.webp_bytes} B."
        )
    if not cuts.complete:
        lines.append("Many branches: all cuts at one tensor are listed, and a selection of those at several.")
    if source.remark is not None:
        lines.append(source.remark)
    return lines


def _print_pair(report: dict[str, Any], checked_on: str) -> None:
    console = Console()
    for role in ("head", "tail"):
        side = report[role]
        console.print(f"{role}: {side['folder']} ({_size(side['bytes'])}), id {side['id'][:16]}", highlight=False)
    console.print(
        f"cut {report['cut_id']}: {report['cut']['payload_bytes']} B of payload. Head + tail gave the bytes of the unsplit "
        f"network on {report['equal_inputs']} of {report['equal_inputs']} inputs ({checked_on}).",
        highlight=False,
        soft_wrap=True,
    )
    if report["microcontroller"]:
        console.print(
            f"`make -C {report['head']['folder']} qemu` runs the head's C on a simulated board and compares latents and frames.",
            highlight=False,
            soft_wrap=True,
        )
    if report["remark"] is not None:
        console.print(report["remark"], highlight=False, soft_wrap=True)


def _macs(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"


def _size(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1000:.1f} kB"
