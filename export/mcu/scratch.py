"""Scratch bytes of the C row kernels, as pure formulas of an operator's shape (``ht_kernels.h``)."""


def needs_gather(in_channels: int) -> bool:
    """Whether CONV_2D copies every window: its runs are not whole words."""
    return in_channels % 4 != 0


def conv_scratch_bytes(kernel_h: int, kernel_w: int, in_channels: int, *, padded: bool) -> int:
    """Scratch of ``ht_conv2d_row``: one window of bytes where windows are copied, else none.

    Args:
        kernel_h: Kernel rows.
        kernel_w: Kernel columns.
        in_channels: Input channels.
        padded: Whether any window reaches outside of the image, on any side.

    Returns:
        Bytes, a multiple of 4.
    """
    if padded or needs_gather(in_channels):
        return (kernel_h * kernel_w * in_channels + 3) // 4 * 4
    return 0


def fully_connected_scratch_bytes(in_features: int) -> int:
    """Scratch of ``ht_fully_connected``."""
    return (in_features + 3) // 4 * 4 if needs_gather(in_features) else 0


def depthwise_scratch_bytes(kernel_h: int, kernel_w: int) -> int:
    """Scratch of ``ht_depthwise_row``: the int16 taps of four channels."""
    return 8 * kernel_h * kernel_w
