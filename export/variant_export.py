"""What `headtail eval` measured as the file that `headtail plan --variants` takes."""

import math
from collections.abc import Mapping

import msgspec

from device_profiles.load import this_board_id
from edge_runtime.artefact import Artefact
from edge_runtime.wire import FIXED_BYTES
from export.evaluate import WayReport
from export.evaluation import Evaluation
from split.plan_variant_file import BottleneckEntry, PictureAccuracy, VariantFile

_HEADERS = FIXED_BYTES + 4 + 8  # of a frame with one layer and one tensor: the planner counts them itself


def to_variants(found: Evaluation, heads: Mapping[str, Artefact]) -> VariantFile:
    """Every pair with its rates and its early exit, and the accuracy on JPEG and WebP pictures and of the whole network.

    Args:
        found: Times were measured on this machine.
        heads: Of the pairs, by the name of their way.
    """
    whole = next((one.accuracy for one in found.ways if one.kind == "whole"), None)
    return VariantFile(
        measured_on=this_board_id(),
        accuracy=whole,
        bottlenecks=tuple(_entry(one, _head_of(one, heads)) for one in found.ways if one.kind in ("pair", "exit")),
        pictures=tuple(
            PictureAccuracy(codec=one.kind, quality=one.setting, accuracy=one.accuracy)
            for one in found.ways
            if one.kind in ("jpeg", "webp")
        ),
    )


def dump_variants(variants: VariantFile) -> bytes:
    """JSON."""
    return msgspec.json.format(msgspec.json.encode(variants), indent=1) + b"\n"


def _head_of(way: WayReport, heads: Mapping[str, Artefact]) -> Artefact:
    name = next(name for name in sorted(heads, key=len, reverse=True) if way.name.startswith(name))
    return heads[name]


def _entry(way: WayReport, head: Artefact) -> BottleneckEntry:
    frame = way.bytes_mean / way.sent if way.sent else 0.0  # of a picture that is sent; times are means over all
    return BottleneckEntry(
        name=way.name,
        head_ms=way.device_ms + way.encode_ms,
        tail_ms=(way.decode_ms + way.host_ms) / way.sent if way.sent else 0.0,
        payload_bytes=max(math.ceil(frame) - _HEADERS, 0),
        accuracy=way.accuracy,
        weight_bytes=None if way.cost is None else way.cost.flash_bytes,
        peak_bytes=None if way.cost is None else way.cost.peak_activation_bytes,
        exit_share=1 - way.sent,
        build=("headtail", "deploy", str(head.folder), "--to", "DEVICE"),
        artefact=head.key,
        layers=way.setting,
    )
