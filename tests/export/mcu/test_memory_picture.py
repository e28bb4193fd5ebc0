"""The memory picture: both files, the figures a reader looks for, the same bytes every time."""

import xml.etree.ElementTree as ET

from export.mcu.memory_picture import draw_memory
from split.patch import PatchGraph, PatchInput, PatchOp, PatchTensor, PlanRequest, Window, plan


def small_plan():
    window = Window(3, 1, 1)
    tensors = tuple(PatchTensor(f"t{i}", 16, 16, c) for i, c in enumerate([3, 16, 16, 4]))
    ops = tuple(PatchOp(f"conv_{i}", "CONV_2D", (PatchInput(i, window, window),), i + 1, macs=10_000) for i in range(3))
    return plan(PatchGraph("small", tensors, ops, (0,), (3,)), PlanRequest(schedule="stream"))


def test_the_picture_is_written_as_svg_and_png_and_names_the_arena(tmp_path):
    result = small_plan()
    svg, png = draw_memory(result, tmp_path / "memory", limits={"board": 20_000})
    text = svg.read_text()
    ET.fromstring(text)
    assert f"arena {result.arena_bytes / 1000:.1f} kB" in text
    assert "board 20.0 kB" in text
    assert "whole layers, peak 8.2 kB" in text
    assert png.read_bytes().startswith(b"\x89PNG")


def test_equal_plans_give_equal_pictures(tmp_path):
    first, _ = draw_memory(small_plan(), tmp_path / "first")
    second, _ = draw_memory(small_plan(), tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()
