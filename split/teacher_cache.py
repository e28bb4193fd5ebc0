"""Teacher outputs kept from one epoch to the next, where pictures come back unchanged (or mirrored).

Sums of floats depend on what else is in a batch. So that a resumed run sees the same values as an uninterrupted one, what is
kept is computed in fixed chunks of neighbouring pictures, and which pictures are kept depends on the memory limit alone.
"""

import torch

from split.augment import Augmentation, Draws, augment, mirrored
from split.inject import Features, Teacher
from split.training_data import PictureSet

REPEATING = ("none", "flip")  # augmentations with few enough views of a picture to keep them
CHUNK = 16

Row = tuple[torch.Tensor, ...]


class TeacherCache:
    """Runs a teacher once for each view of a picture, for as many pictures as the memory holds.

    Args:
        teacher: Of the student that is trained.
        data: The training pictures.
        augmentation: Only "none" and "flip" repeat views; with others every batch is run.
        limit_bytes: For what is kept, in the main memory; 0 keeps nothing.
    """

    def __init__(self, teacher: Teacher, data: PictureSet, augmentation: Augmentation, *, limit_bytes: int) -> None:
        self.teacher, self.data, self.augmentation = teacher, data, augmentation
        repeats = augmentation.kind in REPEATING and not augmentation.colour and not augmentation.mixes
        self.limit_bytes = limit_bytes if repeats else 0
        self.mirrored = augmentation.kind == "flip"
        self.kept: dict[tuple[int, bool], Row] = {}  # by number of the chunk and mirroring, (CHUNK, ...) each
        self.count: int | None = None  # pictures that are kept: the first ones

    def outputs(self, x: torch.Tensor, indices: torch.Tensor, draws: Draws, *, saliency: bool = False) -> Features:
        """The teacher's outputs for a batch, without a gradient.

        Args:
            x: The network's input, (n, 3, height, width).
            indices: Which picture each row shows.
            draws: How it was augmented.
            saliency: With the saliency of the cut's places; the teacher is run for these each time.
        """
        if saliency:
            return self.teacher.with_saliency(x)
        with torch.no_grad():
            if self.count is None:
                self.count = self._room(x)
            live = [row for row, index in enumerate(indices.tolist()) if index >= self.count]
            if len(live) == len(indices):
                result: Features = self.teacher(x)
                return result
            flips = draws.flip.tolist() if self.mirrored else [False] * len(indices)
            rows: list[Row] = [()] * len(indices)
            for row, index in enumerate(indices.tolist()):
                if index < self.count:
                    chunk = self._chunk(index // CHUNK, flips[row], x.device)
                    rows[row] = tuple(one[index % CHUNK] for one in chunk)
            if live:
                fresh = self.teacher(x[live])
                for place, row in enumerate(live):
                    rows[row] = tuple(one[place].cpu() for one in (fresh.logits, *fresh.features))
            logits, *features = (torch.stack(column).to(x.device) for column in zip(*rows, strict=True))
            return Features(logits, tuple(features))

    def _room(self, x: torch.Tensor) -> int:
        if not self.limit_bytes:
            return 0
        one = self.teacher(x[:1])
        size: int = sum(part.numel() * part.element_size() for part in (one.logits, *one.features))
        return min(len(self.data), self.limit_bytes // (size * (2 if self.mirrored else 1)) // CHUNK * CHUNK)

    def _chunk(self, number: int, flip: bool, device: torch.device) -> Row:
        key = (number, flip)
        if key not in self.kept:
            images = self.data.images[number * CHUNK : (number + 1) * CHUNK].to(device)
            count = len(images)
            found = self.teacher(augment(images, self.augmentation, mirrored(count, flip=flip)))
            self.kept[key] = tuple(one.cpu() for one in (found.logits, *found.features))
        return self.kept[key]
