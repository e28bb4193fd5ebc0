"""Scratch bytes of the C row kernels, as pure formulas of an operator's shape (``ht_kernels.h``)."""

_MAX_DIRECT = 7  # HT_MAX_DIRECT
_MAX_RUNS = 16  # MAX_RUNS in ht_conv2d.c
_ZEROS = 64  # ZEROS there


def needs_gather(kernel_h: int, in_channels: int) -> bool:
    """Whether CONV_2D copies every window: its runs are not whole words, or too many."""
    return in_channels % 4 != 0 or kernel_h > _MAX_DIRECT


def conv_scratch_bytes(kernel_h: int, kernel_w: int, in_channels: int, *, padded: bool) -> int:
    """Scratch of ``ht_conv2d_row``: one window of bytes where windows are copied, else none.

    Args:
        kernel_h: Kernel rows.
        kernel_w: Kernel columns.
        in_channels: Input channels.
        padded: Whether any window reaches outside of the image.

    Returns:
        Bytes, a multiple of 4.
    """
    runs = kernel_h * (-(-kernel_w * in_channels // _ZEROS) + 2)  # of a window that is not copied
    splits = in_channels % 16 == 0 and runs <= _MAX_RUNS
    if needs_gather(kernel_h, in_channels) or (padded and not splits):
        return (kernel_h * kernel_w * in_channels + 3) // 4 * 4
    return 0


def fully_connected_scratch_bytes(in_features: int) -> int:
    """Scratch of ``ht_fully_connected``."""
    return (in_features + 3) // 4 * 4 if needs_gather(1, in_features) else 0


def depthwise_scratch_bytes(kernel_h: int, kernel_w: int) -> int:
    """Scratch of ``ht_depthwise_row``: the int16 taps of four channels."""
    return 8 * kernel_h * kernel_w
