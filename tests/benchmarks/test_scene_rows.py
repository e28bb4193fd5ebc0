"""Rows of three tails from points whose curves are known."""

import numpy as np
import pytest

from benchmarks.rows import RowError
from benchmarks.split import scene_rows
from benchmarks.split.scene_curves import ScenePlan, points
from benchmarks.split.scene_points import ScenePoint, point_path, read_point, write_point
from split.scene_metrics import Matches

SCENES, CLASSES = 60, 3


def make_point(name, size, quality, *, seed=0):
    """A point whose scores rise with its quality in [0, 1]; the same scenes fail first at every rate."""
    right = np.arange(SCENES) % 20 < 20 * quality
    pixels = np.zeros((SCENES, CLASSES + 1, CLASSES + 1), int)
    for kind in range(CLASSES + 1):
        pixels[:, kind, kind] = round(1000 * quality)
        pixels[:, kind, (kind + 1) % (CLASSES + 1)] = 1000 - round(1000 * quality)
    pictures, kinds = np.repeat(np.arange(SCENES), CLASSES), np.tile(np.arange(1, CLASSES + 1), SCENES)
    matches = Matches(
        pictures, kinds, np.where(right, 0.75, 0.25)[pictures], right[pictures], np.ones((SCENES, CLASSES), int)
    )
    note = {"point": name, "seed": seed, "pillow": "1.0", "sent": {"masks": "a", "boxes": "a", "classes": "a"}}
    return ScenePoint(np.full(SCENES, float(size)), right, pixels, matches, note)


def curve(factor, *, qualities=(0.5, 0.6, 0.7, 0.8)):
    return [make_point(f"slim:{one}", factor * 1000 * 2 ** (10 * one), one) for one in qualities]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch, tmp_path):
    monkeypatch.setattr(scene_rows, "ROUNDS", 20)
    monkeypatch.setattr(scene_rows, "CHART", tmp_path / "charts" / "three_tails")


def test_half_the_bytes_at_every_score_is_half_the_rate():
    for task in scene_rows.TASKS:
        found = scene_rows.compare([curve(1.0)], [curve(0.5)], task)
        assert found.value == pytest.approx(-50, abs=0.5)
    assert scene_rows.compare([curve(1.0)], [curve(0.5, qualities=(0.1, 0.2, 0.3))], "masks").value is None


def test_a_point_is_read_as_it_was_written(tmp_path):
    point = make_point("slim:0.001", 300, 0.6)
    write_point(tmp_path / "point.npz", point)
    again = read_point(tmp_path / "point.npz")
    assert [again.score(task) for task in scene_rows.TASKS] == [point.score(task) for task in scene_rows.TASKS]
    assert (again.size(), again.note) == (300, point.note)


def test_rows_take_the_worse_task_and_tell_different_heads_apart(tmp_path):
    with pytest.raises(RowError, match="scene_curves"):
        list(scene_rows.rows(tmp_path))
    plan = ScenePlan()
    for number, name in enumerate(points(plan)):
        kind, rate = divmod(number, len(plan.betas))
        quality = 0.5 + 0.08 * (rate if kind else 5 - rate)
        point = make_point(name, (1.0 if kind else 0.6) * 1000 * 2 ** (10 * quality), quality)
        if number == 1:
            point.note["sent"]["boxes"] = "b"
        write_point(point_path(tmp_path, name, 0), point)
    found = {one["id"]: one for one in scene_rows.rows(tmp_path)}
    assert found["three_tails"]["value"] == max(found[f"three_tails.{one}"]["value"] for one in ("masks", "boxes"))
    assert found["three_tails"]["value"] == pytest.approx(-40, abs=2)
    assert found["three_tails.same_head"]["value"] == 2
    assert {f"three_tails.{kind}.6" for kind in ("slim", "webp")} <= set(found)
    assert (tmp_path / "charts" / "three_tails.svg").is_file()
