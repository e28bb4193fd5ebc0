"""What an export says about itself: ``report.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # who only reads a report needs none of the generator's libraries
    from export.mcu.emit_frame import FrameCode
    from export.mcu.emit_network import NetworkCode
    from export.mcu.machines import Limits
    from export.mcu.network import Network
    from split.patch_plan import FrontPoint, Plan

REPORT_NAME = "report.json"
STACK_BYTES = 1024  # the linker keeps at least this much for the stack
CODE_BYTES = 16_000  # kernels and step loop, at most; the linker checks the true figure


class SegmentReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operators under one schedule."""

    schedule: str
    operators: tuple[str, ...]
    passes: int
    arena_bytes: int
    scratch_bytes: int
    macs: int


class FrontReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One schedule that nothing beats in both RAM and MACs."""

    arena_bytes: int
    macs: int
    mac_factor: float


class McuReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An export for a microcontroller. Sizes in bytes.

    ``live_bound_bytes`` is what no placement of this schedule's buffers can go below; ``certificate`` says how the
    arena was found ("live-bound": it equals the bound).
    """

    schema: int = 1
    model: str
    function: str
    board: str
    board_sram_bytes: int
    board_flash_bytes: int
    input_mode: str
    arena_bytes: int
    live_bound_bytes: int
    certificate: str
    constant_bytes: int
    weight_bytes: int
    macs: int
    mac_factor: float
    largest_tensor_bytes: int
    all_tensors_bytes: int
    operators: dict[str, int]
    segments: tuple[SegmentReport, ...]
    front: tuple[FrontReport, ...]
    golden_cases: int
    frame_bytes: int = 0  # of a head: the buffer for its frames, beside the arena

    @property
    def ram_bytes(self) -> int:
        """What the linker keeps: arena, frame buffer, and the least stack."""
        return self.arena_bytes + self.frame_bytes + STACK_BYTES

    @property
    def flash_bytes(self) -> int:
        """Weights and tables, and the most that the code takes."""
        return self.constant_bytes + CODE_BYTES


def make_report(
    network: Network, plan: Plan, code: NetworkCode, limits: Limits, front: tuple[FrontPoint, ...], *, cases: int,
    frame: FrameCode | None = None,
) -> McuReport:  # fmt: skip
    """Collect the figures of one export; ``code.prefix`` names its functions."""
    counts: dict[str, int] = {}
    for op in network.ops:
        counts[op.kind] = counts.get(op.kind, 0) + 1
    sizes = [value.size_bytes for value in network.values.values()]
    return McuReport(
        model=plan.graph.name,
        function=f"{code.prefix}_run",
        board=limits.board,
        board_sram_bytes=limits.sram_bytes,
        board_flash_bytes=limits.flash_bytes,
        input_mode=plan.input_mode.value,
        arena_bytes=plan.arena_bytes,
        live_bound_bytes=plan.live_bound_bytes,
        certificate=plan.certificate,
        constant_bytes=code.constant_bytes + (frame.constant_bytes if frame else 0),
        weight_bytes=network.weight_bytes,
        macs=plan.macs,
        mac_factor=plan.mac_factor,
        largest_tensor_bytes=max(sizes),
        all_tensors_bytes=sum(sizes),
        operators=counts,
        segments=tuple(
            SegmentReport(
                schedule=segment.kind.value,
                operators=tuple(op.name for op in plan.graph.ops[segment.first_op : segment.last_op + 1]),
                passes=len(segment.passes),
                arena_bytes=segment.arena_bytes,
                scratch_bytes=segment.scratch_bytes,
                macs=segment.macs,
            )
            for segment in plan.segments
        ),
        front=tuple(FrontReport(arena_bytes=p.arena_bytes, macs=p.macs, mac_factor=p.mac_factor) for p in front),
        golden_cases=cases,
        frame_bytes=frame.buffer_bytes if frame else 0,
    )
