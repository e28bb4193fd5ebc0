"""The fixed-point arithmetic of TensorFlow Lite Micro's int8 kernels, on NumPy int64 arrays.

Used to make the constants and tables of the generated C; the kernels repeat ``multiply_by_quantized_multiplier`` in C.
"""

import math

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)


def round_half_away(x: float) -> int:
    """Round to the nearest integer, ties away from zero (``TfLiteRound``)."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Write ``real`` as ``q * 2**(shift - 31)``.

    Args:
        real: A multiplier >= 0, finite.

    Returns:
        ``(q, shift)`` with q in [2^30, 2^31) and shift in [-31, ..], or (0, 0) when ``real`` is 0 or below 2^-32.

    Source: QuantizeMultiplier, tensorflow/lite/kernels/internal/quantization_util.cc.
    """
    if real == 0.0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    q = round_half_away(mantissa * 2**31)
    if q == 2**31:
        q, shift = q // 2, shift + 1
    return (0, 0) if shift < -31 else (q, shift)


def saturating_rounding_doubling_high_mul(a: Int64s, b: Int64s | int) -> Int64s:
    """``a * b / 2^31`` for int32 operands, ties away from zero except at negative ties (gemmlowp SQRDMULH)."""
    product = a * np.int64(b) if isinstance(b, int) else a * b
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    quotient = np.abs(nudged) >> 31  # C division truncates towards zero
    return np.asarray(np.minimum(np.where(nudged < 0, -quotient, quotient), INT32_MAX), dtype=np.int64)


def rounding_divide_by_power_of_two(x: Int64s, exponent: int) -> Int64s:
    """``x / 2**exponent`` to nearest, ties away from zero; ``exponent`` >= 0."""
    if exponent == 0:
        return x
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return np.asarray((x >> exponent) + ((x & mask) > threshold), dtype=np.int64)


def multiply_by_quantized_multiplier(x: Int64s, multiplier: int, shift: int) -> Int64s:
    """``x * multiplier * 2**(shift - 31)`` with TensorFlow Lite Micro's double rounding."""
    shifted = x * (1 << max(shift, 0))
    high = saturating_rounding_doubling_high_mul(shifted, multiplier)
    return rounding_divide_by_power_of_two(high, max(-shift, 0))
