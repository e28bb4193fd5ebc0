"""Plan how a network runs in a small arena: by layers, by patches, by row streams, or a mixture (the public face).

``plan(graph, request)`` returns a :class:`~split.patch_plan.Plan`, ``pareto_front(graph, request)`` the whole trade
between RAM and MACs, ``check_plan(plan)`` re-executes a plan row by row and raises if a step would read wrong bytes.
"""

from __future__ import annotations

from split.patch_check import PlanError, check_plan
from split.patch_graph import PatchGraph, PatchGraphError, PatchInput, PatchOp, PatchTensor, Window
from split.patch_plan import (
    Accumulator,
    Buffer,
    EdgeKind,
    Extent,
    FrontPoint,
    InputMode,
    Move,
    Pass,
    Plan,
    PlanRequest,
    Segment,
    Step,
    StepKind,
)
from split.patch_planner import pareto_front, plan, plan_and_front

__all__ = [
    "Accumulator",
    "Buffer",
    "EdgeKind",
    "Extent",
    "FrontPoint",
    "InputMode",
    "Move",
    "Pass",
    "PatchGraph",
    "PatchGraphError",
    "PatchInput",
    "PatchOp",
    "PatchTensor",
    "Plan",
    "PlanError",
    "PlanRequest",
    "Segment",
    "Step",
    "StepKind",
    "Window",
    "check_plan",
    "pareto_front",
    "plan",
    "plan_and_front",
]
