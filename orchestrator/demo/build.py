"""First half of the demo: export the network twice, list its cuts, choose three, write the pairs."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from orchestrator.demo.photos import copy_photos, write_calibration
from orchestrator.demo.processes import Children, headtail
from orchestrator.demo.strategies import Strategy

MODEL = "export.zoo:efficientnet_lite0"
# A cut within each share of the network's work: the one with the fewest bytes.
SHARES = (("early", 0.0, 0.15), ("middle", 0.15, 0.5), ("late", 0.5, 0.95))
JPEG_QUALITY = WEBP_QUALITY = 75


class ListedTensor(msgspec.Struct, frozen=True):
    """One crossing tensor of `headtail split --list --json`; other fields are not needed here."""

    name: str


class ListedCut(msgspec.Struct, frozen=True):
    """One cut of `headtail split --list --json`."""

    tensors: tuple[ListedTensor, ...]
    head_macs: int
    tail_macs: int
    payload_bytes: int

    @property
    def share(self) -> float:
        """Share of the network's multiply-accumulates that the head has, 0 to 1."""
        return self.head_macs / max(1, self.head_macs + self.tail_macs)

    @property
    def at(self) -> str:
        """What `--at` takes."""
        return ",".join(tensor.name for tensor in self.tensors)


class CutListing(msgspec.Struct, frozen=True):
    """The answer of `headtail split --list --json`."""

    cuts: tuple[ListedCut, ...]


class CutChoiceError(EdgeError):
    """The network has no cut where the demo wants one."""


@dataclass(frozen=True)
class Built:
    """Everything that the second half needs."""

    strategies: tuple[Strategy, ...]
    tails: tuple[Path, ...]
    whole_fp32: Path
    whole_int8: Path
    live_pair: Path  # head and tail of the streaming part
    pictures: tuple[Path, ...]


def choose_cuts(cuts: tuple[ListedCut, ...]) -> list[tuple[str, ListedCut]]:
    """The input itself ("raw pixels"), and the cut with the fewest bytes in each share of the network.

    Raises:
        CutChoiceError: A share without a cut.
    """
    chosen = []
    raw = [cut for cut in cuts if cut.head_macs == 0]
    if raw:
        chosen.append(("raw pixels", min(raw, key=lambda cut: cut.payload_bytes)))
    for name, low, high in SHARES:
        inside = [cut for cut in cuts if low < cut.share <= high]
        if not inside:
            raise CutChoiceError(f"Wanted a cut between {low:.0%} and {high:.0%} of the network, found none.")
        best = min(inside, key=lambda cut: (cut.payload_bytes, cut.head_macs))
        chosen.append((f"{name} cut at {best.share:.0%}", best))
    return chosen


def build(folder: Path, children: Children) -> Built:
    """Export, cut, and write pictures below `folder`.

    Raises:
        ChildError: A command failed.
    """
    pictures = copy_photos(folder / "pictures")
    calibration = folder / "calibration"
    write_calibration(calibration)
    fp32, int8 = folder / "whole-fp32", folder / "whole-int8"
    children.run(
        "export-fp32", headtail("export", MODEL, "--target", "this", "--precision", "fp32", "--out", str(fp32))
    )
    children.run(
        "export-int8",
        headtail(
            "export",
            MODEL,
            "--target",
            "this",
            "--precision",
            "int8",
            "--calibration",
            str(calibration),
            "--out",
            str(int8),
        ),
    )
    listing = children.run("split-list", headtail("split", str(int8), "--list", "--json"))
    cuts = msgspec.json.decode(listing.encode(), type=CutListing).cuts
    strategies = [
        Strategy(name="all local, fp32", kind="local", artefact=str(fp32)),
        Strategy(name="all local, int8", kind="local", artefact=str(int8)),
    ]
    pairs = []
    for number, (name, cut) in enumerate(choose_cuts(cuts)):
        pair = folder / "cuts" / str(number)
        coder = ["--codec", "rans", "--calibration", str(calibration)] if cut.head_macs else []  # raw pixels stay raw
        children.run(f"split-{number}", headtail("split", str(int8), "--at", cut.at, "--out", str(pair), *coder))
        pairs.append(pair)
        strategies.append(Strategy(name=name, kind="cut", artefact=str(pair / "head")))
    strategies += [
        Strategy(name=f"JPEG, quality {JPEG_QUALITY}", kind="jpeg", artefact=str(fp32), quality=JPEG_QUALITY),
        Strategy(name=f"WebP, quality {WEBP_QUALITY}", kind="webp", artefact=str(fp32), quality=WEBP_QUALITY),
    ]
    return Built(
        strategies=tuple(strategies),
        tails=tuple(pair / "tail" for pair in pairs),
        whole_fp32=fp32,
        whole_int8=int8,
        live_pair=pairs[-1],
        pictures=tuple(pictures),
    )
