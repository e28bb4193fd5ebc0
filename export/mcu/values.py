"""The activations of a network as they lie in memory: int8, height x width x channels, batch 1."""

from dataclasses import dataclass

import numpy as np

MAX_ELEMENTS = 1 << 26  # of one tensor; a microcontroller's largest RAM is far below


@dataclass(frozen=True)
class Quant:
    """Affine int8 quantisation: real = scale * (q - zero_point)."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class Value:
    """One activation tensor in its physical layout.

    Attributes:
        key: Index of the tensor in the ``.tflite`` file that first holds these bytes.
        name: Its name in the file.
        height: Rows.
        width: Columns.
        channels: Channels, the fastest axis.
        quant: How integers stand for real numbers.
    """

    key: int
    name: str
    height: int
    width: int
    channels: int
    quant: Quant

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``."""
        return (self.height, self.width, self.channels)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class View:
    """How one tensor of the file looks at a value.

    Attributes:
        key: Key of the value.
        shape: The file's shape, batch included.
        axes: For each dimension of ``shape`` the physical axis (0 height, 1 width, 2 channels) it runs over, or -1 for
            a dimension of size 1 that stands for no axis.
    """

    key: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Physical axes of the dimensions larger than 1, in the file's order."""
        return tuple(axis for size, axis in zip(self.shape, self.axes, strict=True) if size > 1)

    @property
    def in_memory_order(self) -> bool:
        """Whether walking the file's dimensions walks memory from start to end."""
        return list(self.order) == sorted(self.order)


def physical_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Read a file's shape as (height, width, channels); None when the batch is not 1 or the rank is above 4."""
    if len(shape) == 4:
        return (shape[1], shape[2], shape[3]) if shape[0] == 1 else None
    if len(shape) > 4:
        return None
    padded = (1,) * (3 - len(shape)) + shape
    return (padded[0], padded[1], padded[2])


def plain_view(key: int, shape: tuple[int, ...]) -> View:
    """The view of a tensor whose dimensions are (batch,) height, width, channels."""
    axes = (-1, 0, 1, 2) if len(shape) == 4 else (0, 1, 2)[3 - len(shape) :]
    return View(key, shape, axes)


@dataclass(frozen=True)
class Constant:
    """A constant tensor of the file with its per-channel or per-tensor scales."""

    name: str
    data: np.ndarray  # int8 or int32, the file's shape
    scales: tuple[np.float32, ...]
    zero_points: tuple[int, ...]
    channel_axis: int
