"""The exp table of the SOFTMAX kernel."""

import numpy as np
import numpy.typing as npt

from export.mcu.fixedpoint import saturating_rounding_doubling_high_mul
from export.mcu.ops.logistic import exp_on_negative

_INTEGER_BITS = 5  # of the scaled difference


def softmax_exp_table(multiplier: int, left_shift: int, diff_min: int) -> npt.NDArray[np.int32]:
    """Tabulate exp of ``x - max`` for every difference that SOFTMAX does not drop.

    Args:
        multiplier: Input multiplier, in [2^30, 2^31).
        left_shift: Its exponent, >= 0.
        diff_min: Lowest difference whose exp is not 0, <= 0.

    Returns:
        int32 Q0.31, shape (entries,), entries in [1, 256]; element d belongs to max - x = d.

    Source: Softmax, tensorflow/lite/kernels/internal/reference/softmax.h.
    """
    differences = -np.arange(min(-diff_min, 255) + 1, dtype=np.int64)
    scaled = saturating_rounding_doubling_high_mul(differences << left_shift, multiplier)
    return exp_on_negative(scaled, _INTEGER_BITS).astype(np.int32)
