"""What the patch planner is told about a network: tensors of rows, and operators that read windows of rows.

Every tensor is int8 in NHWC with batch 1, so it is ``height`` rows of ``width * channels`` bytes. Every operator says,
per input, which input rows one output row reads and which input columns one output column reads (:class:`Window`);
nothing else about an operator matters to a schedule. Pure data: no model format, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_profiles.errors import EdgeError


class PatchGraphError(EdgeError):
    """A PatchGraph contradicts itself (unknown tensor, wrong order, impossible window), or a request makes no sense."""


@dataclass(frozen=True)
class Window:
    """Which input positions one output position reads along one axis.

    Output position ``y`` reads input positions ``lo .. lo + size - 1`` with ``lo = y * stride // divide - before``,
    clipped to the input. Convolution and pooling: kernel, stride, padding before. Element-wise: the default. A
    broadcast input: ``size`` 1, ``stride`` 0. The whole axis (dense, reduce): ``size`` = extent, ``stride`` 0. Nearest
    resize: ``stride`` = input extent, ``divide`` = output extent. Concatenation along the axis: ``before`` = offset of
    the part.
    """

    size: int = 1
    stride: int = 1
    before: int = 0
    divide: int = 1

    def reads(self, position: int, extent: int) -> tuple[int, int]:
        """Return the half-open input range [lo, hi) read for one output position; empty (lo >= hi) if outside."""
        lo = position * self.stride // self.divide - self.before
        return max(lo, 0), min(lo + self.size, extent)

    def reads_range(self, start: int, stop: int, extent: int) -> tuple[int, int]:
        """Return the half-open input range read for output positions [start, stop), which must not be empty."""
        lo = start * self.stride // self.divide - self.before
        hi = (stop - 1) * self.stride // self.divide - self.before + self.size
        return max(lo, 0), min(hi, extent)


@dataclass(frozen=True)
class PatchTensor:
    """One int8 activation tensor (NHWC, batch 1). Constants are not tensors here."""

    name: str
    height: int
    width: int
    channels: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one full row."""
        return self.width * self.channels

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.height * self.row_bytes


@dataclass(frozen=True)
class PatchInput:
    """One activation operand of an operator."""

    tensor: int  # index into PatchGraph.tensors
    rows: Window = Window()
    columns: Window = Window()


@dataclass(frozen=True)
class PatchOp:
    """One operator with exactly one output tensor.

    Attributes:
        name: For reports, such as ``"conv2d_3"``.
        kind: For reports and drawings, such as ``"CONV_2D"``; the planner does not look at it.
        inputs: Activation operands. A ``reduces`` operator has exactly one.
        output: Index of the output tensor.
        macs: Multiply-accumulates of the whole operator (padding taps included, as is usual).
        scratch_bytes: Kernel scratch that must exist while a row of this operator runs.
        reduces: Global pooling over height and width: input rows are added to an accumulator one by one, then the
            output (height 1, width 1) is written. The accumulator takes ``accumulator_bytes`` (int32: 4 * channels).
        accumulator_bytes: See ``reduces``; 0 otherwise.
        in_place: Element-wise: the kernel may write an output row exactly over the same row of an input that has the
            output's shape.
        whole_rows: A row can only be computed at full width (softmax over the row, transpose ...): never tiled.
    """

    name: str
    kind: str
    inputs: tuple[PatchInput, ...]
    output: int
    macs: int = 0
    scratch_bytes: int = 0
    reduces: bool = False
    accumulator_bytes: int = 0
    in_place: bool = False
    whole_rows: bool = False


@dataclass(frozen=True)
class PatchGraph:
    """A network in execution order. ``outputs`` stay in the arena until the end of the run.

    Aliases (RESHAPE) do not appear: the consumer names the original tensor and reads it as it lies in memory
    (a dense layer reads all rows: ``Window(size=height, stride=0)``; it then has all rows at a contiguous address).
    """

    name: str
    tensors: tuple[PatchTensor, ...]
    ops: tuple[PatchOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run without recomputation."""
        return sum(op.macs for op in self.ops)
