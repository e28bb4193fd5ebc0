"""NumPy model of TensorFlow Lite Micro's int8 reference kernels, from their definitions, independent of the product."""

import numpy as np

INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)


def srdhm(a, b):
    """SaturatingRoundingDoublingHighMul: nudge by sign, divide truncating towards zero."""
    ab = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudged = ab + np.where(ab >= 0, 1 << 30, 1 - (1 << 30))
    return np.where(nudged >= 0, nudged // 2**31, -((-nudged) // 2**31))


def rdbpot(x, exponent):
    """RoundingDivideByPOT."""
    x = np.asarray(x, np.int64)
    mask = (np.int64(1) << exponent) - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


def wrap32(x):
    return np.asarray(x, np.int64).astype(np.int32).astype(np.int64)


def requant(x, mult, shift):
    """MultiplyByQuantizedMultiplier, double rounding."""
    shift = np.asarray(shift, np.int64)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    return rdbpot(srdhm(wrap32(np.asarray(x, np.int64) << left), mult), right)


def clip(x, low, high):
    return np.clip(x, low, high).astype(np.int8)


def window(image, y, x, kh, kw, fill):
    """(kh, kw, C) window at image row y, column x; outside: fill."""
    h, w, c = image.shape
    out = np.full((kh, kw, c), fill, np.int64)
    for i in range(max(0, -y), min(kh, h - y)):
        for j in range(max(0, -x), min(kw, w - x)):
            out[i, j] = image[y + i, x + j]
    return out


def conv(image, weights, bias, mult, shift, zeros, stride, pad, clamp, shape):
    """(H, W, C) with (O, kh, kw, C): whole output of ``shape`` (rows, columns)."""
    out_n, kh, kw, _ = weights.shape
    y = np.zeros((*shape, out_n), np.int8)
    for r in range(shape[0]):
        for s in range(shape[1]):
            w = window(image, r * stride[0] - pad[0], s * stride[1] - pad[1], kh, kw, zeros[0]) - zeros[0]
            acc = wrap32(np.tensordot(weights.astype(np.int64), w, 3) + bias)
            y[r, s] = clip(requant(acc, mult, shift) + zeros[1], *clamp)
    return y


def depthwise(image, weights, bias, mult, shift, zeros, stride, pad, clamp, shape):
    """(H, W, C) with (kh, kw, C * m)."""
    kh, kw, out_n = weights.shape
    m = out_n // image.shape[2]
    y = np.zeros((*shape, out_n), np.int8)
    for r in range(shape[0]):
        for s in range(shape[1]):
            w = window(image, r * stride[0] - pad[0], s * stride[1] - pad[1], kh, kw, zeros[0]) - zeros[0]
            acc = wrap32((weights.astype(np.int64) * np.repeat(w, m, 2)).sum((0, 1)) + bias)
            y[r, s] = clip(requant(acc, mult, shift) + zeros[1], *clamp)
    return y


def pool(image, kernel, stride, pad, clamp, shape, *, average):
    h, w, c = image.shape
    y = np.zeros((*shape, c), np.int8)
    for r in range(shape[0]):
        for s in range(shape[1]):
            top, left = r * stride[0] - pad[0], s * stride[1] - pad[1]
            part = image[max(top, 0) : min(top + kernel[0], h), max(left, 0) : min(left + kernel[1], w)].astype(
                np.int64
            )
            if average:
                y[r, s] = clip(rounded_mean(part.sum((0, 1)), part.shape[0] * part.shape[1]), *clamp)
            else:
                y[r, s] = clip(part.max((0, 1)), *clamp)
    return y


def rounded_mean(total, count):
    """(total +- count / 2) / count in C integers."""
    t = np.where(total > 0, total + count // 2, total - count // 2)
    return np.where(t >= 0, t // count, -((-t) // count))


def mean(image, mult, shift, zeros):
    count = image.shape[0] * image.shape[1]
    acc = image.astype(np.int64).sum((0, 1)) - zeros[0] * count
    return clip(requant(acc, mult, shift) + zeros[1], -128, 127)


def add(a, b, p):
    """ADD with left shift 20; p: mults, right shifts, zeros as (a, b, out), clamp."""
    scaled = [
        rdbpot(srdhm((x.astype(np.int64) - p["zeros"][i]) << 20, p["mults"][i]), p["shifts"][i])
        for i, x in enumerate((a, b))
    ]
    return clip(rdbpot(srdhm(scaled[0] + scaled[1], p["mults"][2]), p["shifts"][2]) + p["zeros"][2], *p["clamp"])


def mul(a, b, mult, shift, zeros, clamp):
    product = (a.astype(np.int64) - zeros[0]) * (b.astype(np.int64) - zeros[1])
    return clip(requant(product, mult, shift) + zeros[2], *clamp)
