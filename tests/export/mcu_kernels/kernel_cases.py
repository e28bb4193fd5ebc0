"""Random kernel cases with their expected bytes."""

import kernel_reference as ref
import numpy as np
from kernel_harness import Case, block, words

from export.mcu import kernels_pack as kp
from export.mcu import scratch


def tensor(rng, shape, zero=0):
    """int8: full range, or a constant, or near a zero point."""
    style = rng.integers(0, 6)
    if style == 0:
        return np.full(shape, rng.choice([-128, 127, zero]), np.int8)
    if style == 1:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


def requant_arrays(rng, n, taps):
    """bias, multiplier, shift; now and then uniform, exact ties (q = 2^30), left shifts, no shift."""
    style = rng.integers(0, 9)
    bias = rng.integers(-(2**14), 2**14, n).astype(np.int32)
    mult = rng.integers(2**30, 2**31, n).astype(np.int32)
    typical = -int(np.ceil(np.log2(max(taps, 2)))) - 4
    shift = (typical + rng.integers(-3, 4, n)).clip(-31, 3).astype(np.int32)
    if style == 0:
        mult[:], shift[:] = mult[0], shift[0]
    elif style == 1:
        mult[:] = 2**30
    elif style == 2:
        shift = rng.integers(-31, 1, n).astype(np.int32)
    elif style == 3:
        shift = rng.integers(-4, 3, n).astype(np.int32)
        mult[rng.integers(0, n)] = 0
    elif style == 4:  # dead channels: a bias near the multiplier's reach
        dead = rng.integers(0, 2, n).astype(bool)
        bias[dead] = rng.choice([2**30 - 5, 2**30 + 128, -(2**30) - 3], int(dead.sum()))
        shift[dead] = rng.choice([-31, -28, -24, 0], int(dead.sum()))
        mult[dead & (shift == 0)] = 0
    elif style == 5:
        bias = rng.integers(-(2**31), 2**31, n).astype(np.int64).astype(np.int32)
    return bias, mult, shift


def clamp_of(rng, zero):
    return [(-128, 127), (zero, 127), (zero, min(127, zero + int(rng.integers(0, 100))))][rng.integers(0, 3)]


def rq_bytes(packed):
    return b"".join(np.array(e.mult, "<i4").tobytes() + np.array(e.shift, "<i1").tobytes() for e in packed.requant)


def geometry(rng, kh, kw, stride):
    """Image size, padding (top, left) and output size with any asymmetric padding that the kernel allows."""
    top, bottom = (int(v) for v in rng.integers(0, kh, 2))
    left, right = (int(v) for v in rng.integers(0, kw, 2))
    h = int(rng.integers(max(1, kh - top - bottom), kh + 4))
    w = int(rng.integers(max(1, kw - left - right), kw + 9))
    shape = ((h + top + bottom - kh) // stride[0] + 1, (w + left + right - kw) // stride[1] + 1)
    padded = (
        top > 0 or left > 0 or (shape[0] - 1) * stride[0] - top + kh > h or (shape[1] - 1) * stride[1] - left + kw > w
    )
    return (h, w), (top, left), shape, padded


def row_payload(rng, image, pad, stride, kernel, shape, *, whole):
    """Words of cols and row blocks for one random output row; a random column range unless ``whole``."""
    h, w, _ = image.shape
    r = int(rng.integers(0, shape[0]))
    lo, hi = (0, shape[1]) if whole else sorted(int(v) for v in rng.choice(shape[1] + 1, 2, replace=False))
    first = 0 if whole else max(0, lo * stride[1] - pad[1])
    last = w if whole else min(w, (hi - 1) * stride[1] - pad[1] + kernel[1])
    first, last = (first, last) if first < last else (0, w)
    rows = [r * stride[0] - pad[0] + k for k in range(kernel[0])]
    body = b"".join(block(image[y, first:last] if 0 <= y < h else None) for y in rows)
    return words(first, last, lo, hi) + body, r, lo, hi


def conv_words(packed, shape, stride_w, pad_left, zeros, clamp):
    out, kh, kw, channels = shape
    fields = (packed.rq_step, channels, out, kh, kw, stride_w, pad_left, packed.flags, *zeros, *clamp)
    return block(packed.weights) + block(rq_bytes(packed)) + words(*fields)


def conv_case(rng, shape=None, stride=None, name="conv"):
    if shape is None:
        kh, kw = int(rng.choice([1, 2, 3, 3, 4, 5, 6, 7, 11])), int(rng.integers(1, 8))
        shape = (int(rng.integers(1, 18)), kh, kw, int(rng.choice([1, 2, 3, 4, 5, 8, 12, 16, 20, 24, 28, 32, 36, 64])))
    stride = stride or tuple(int(v) for v in rng.integers(1, 4, 2))
    out, kh, kw, channels = shape
    size, pad, out_shape, padded = geometry(rng, kh, kw, stride)
    zeros = tuple(int(v) for v in rng.integers(-128, 128, 2))
    weights = tensor(rng, shape)
    image = tensor(rng, (*size, channels), zeros[0])
    bias, mult, shift = requant_arrays(rng, out, kh * kw * channels)
    clamp = clamp_of(rng, zeros[1])
    packed = kp.pack_conv(weights, kp.Quantization(bias, mult, shift, zeros[0], clamp))
    rows, r, lo, hi = row_payload(rng, image, pad, stride, (kh, kw), out_shape, whole=bool(rng.integers(0, 2)))
    need = scratch.conv_scratch_bytes(kh, kw, channels, padded=padded)
    payload = conv_words(packed, shape, stride[1], pad[1], zeros, clamp) + rows + words(need)
    want = ref.conv(image, weights, bias, mult, shift, zeros, stride, pad, clamp, out_shape)
    return Case(f"{name} {shape} stride {stride} pad {pad} of {size}", 1, payload, want[r, lo:hi].tobytes())


def dense_case(rng, out=None, taps=None):
    out, taps = out or int(rng.integers(1, 20)), taps or int(rng.integers(1, 130))
    zeros = tuple(int(v) for v in rng.integers(-128, 128, 2))
    weights, x = tensor(rng, (out, taps)), tensor(rng, (1, 1, taps), zeros[0])
    bias, mult, shift = requant_arrays(rng, out, taps)
    clamp = clamp_of(rng, zeros[1])
    packed = kp.pack_fully_connected(weights, kp.Quantization(bias, mult, shift, zeros[0], clamp))
    need = scratch.fully_connected_scratch_bytes(taps)
    payload = conv_words(packed, (out, 1, 1, taps), 1, 0, zeros, clamp) + block(x) + words(need)
    want = ref.conv(x, weights.reshape(out, 1, 1, taps), bias, mult, shift, zeros, (1, 1), (0, 0), clamp, (1, 1))
    return Case(f"dense {out} x {taps}", 2, payload, want.tobytes())


def depthwise_case(rng, kernel=None, channels=None, stride=None, multiplier=None):
    kh, kw = kernel or (int(v) for v in rng.choice([1, 2, 3, 3, 3, 4, 5, 7], 2))
    multiplier = multiplier or int(rng.choice([1, 1, 1, 2, 3]))
    channels = channels or int(rng.choice([1, 2, 3, 4, 5, 8, 12, 16, 20, 64]))
    stride = stride or tuple(int(v) for v in rng.integers(1, 4, 2))
    out = channels * multiplier
    size, pad, out_shape, _ = geometry(rng, kh, kw, stride)
    zeros = tuple(int(v) for v in rng.integers(-128, 128, 2))
    weights, image = tensor(rng, (kh, kw, out)), tensor(rng, (*size, channels), zeros[0])
    bias, mult, shift = requant_arrays(rng, out, kh * kw)
    clamp = clamp_of(rng, zeros[1])
    packed = kp.pack_depthwise(weights, kp.Quantization(bias, mult, shift, zeros[0], clamp))
    rows, r, lo, hi = row_payload(rng, image, pad, stride, (kh, kw), out_shape, whole=bool(rng.integers(0, 2)))
    fields = (packed.rq_step, channels, out, kh, kw, stride[1], pad[1], multiplier, packed.flags, *zeros, *clamp)
    payload = block(packed.weights) + block(rq_bytes(packed)) + words(*fields) + rows
    payload += words(scratch.depthwise_scratch_bytes(kh, kw))
    want = ref.depthwise(image, weights, bias, mult, shift, zeros, stride, pad, clamp, out_shape)
    name = f"depthwise {kh}x{kw} channels {channels}x{multiplier} stride {stride} pad {pad} of {size}"
    return Case(name, 3, payload, want[r, lo:hi].tobytes())


def pool_case(rng):
    average = bool(rng.integers(0, 2))
    kh, kw = (int(v) for v in rng.integers(1, 6, 2))
    stride = tuple(int(v) for v in rng.integers(1, 4, 2))
    channels = int(rng.integers(1, 14))
    size, pad, out_shape, _ = geometry(rng, kh, kw, stride)
    image = tensor(rng, (*size, channels))
    # Windows wholly inside of the padding do not occur in SAME padding.
    pad = (min(pad[0], size[0] - 1), min(pad[1], size[1] - 1))
    out_shape = tuple(
        max(1, min(o, (s + p - 1) // st + 1)) for o, s, p, st in zip(out_shape, size, pad, stride, strict=True)
    )
    clamp = clamp_of(rng, int(rng.integers(-128, 128)))
    rows, r, lo, hi = row_payload(rng, image, pad, stride, (kh, kw), out_shape, whole=bool(rng.integers(0, 2)))
    payload = words(channels, kh, kw, stride[1], pad[1], *clamp) + rows + words(0)
    want = ref.pool(image, (kh, kw), stride, pad, clamp, out_shape, average=average)
    name = f"pool average={average} {kh}x{kw} stride {stride} pad {pad} of {size}"
    return Case(name, 4 if average else 5, payload, want[r, lo:hi].tobytes())


def global_case(rng):
    h, w, channels = (int(v) for v in rng.integers(1, 12, 3))
    image = tensor(rng, (h, w, channels))
    zeros = tuple(int(v) for v in rng.integers(-128, 128, 2))
    clamp = clamp_of(rng, zeros[1])
    mult, shift = int(rng.integers(2**28, 2**31)), int(rng.integers(-9, 2))
    average = bool(rng.integers(0, 2))
    payload = words(h, w, channels, mult, shift, h * w, *zeros, *clamp) + block(image)
    if average:
        want = ref.pool(image, (h, w), (1, 1), (0, 0), clamp, (1, 1), average=True)
    else:
        want = ref.mean(image, mult, shift, zeros)
    return Case(f"global average={average} {h}x{w}x{channels}", 6 if average else 7, payload, want.tobytes())


def binary_case(rng):
    channels, pixels = int(rng.integers(1, 14)), int(rng.integers(1, 9))
    n = channels * pixels
    broadcast = int(rng.integers(0, 3))
    zeros = tuple(int(v) for v in rng.integers(-128, 128, 3))
    clamp = clamp_of(rng, zeros[2])
    a = tensor(rng, (pixels, channels), zeros[0])
    b = tensor(rng, ((pixels, channels), (1, channels), (1, 1))[broadcast], zeros[1])
    in_place = int(rng.integers(0, 3 if broadcast == 0 else 2))
    tail = words(n, in_place) + block(a) + block(b)
    if rng.integers(0, 2):
        mults = [int(v) for v in rng.integers(2**30, 2**31, 3)]
        mults[int(rng.integers(0, 2))] = 2**30
        shifts = [int(v) for v in (*rng.integers(0, 12, 2), rng.integers(10, 26))]
        p = {"mults": mults, "shifts": shifts, "zeros": zeros, "clamp": clamp}
        head = words(*mults, *shifts, *zeros, *clamp, channels, broadcast)
        return Case(f"add {channels}x{pixels} {broadcast} {p}", 8, head + tail, ref.add(a, b, p).tobytes())
    mult, shift = int(rng.integers(2**30, 2**31)), int(rng.integers(-16, 2))
    head = words(mult, shift, *zeros, *clamp, channels, broadcast)
    want = ref.mul(a, b, mult, shift, zeros, clamp)
    return Case(f"mul {channels}x{pixels} {broadcast}", 9, head + tail, want.tobytes())


def copy_case(rng):
    kind = int(rng.choice([10, 12, 13, 14, 15]))
    if kind == 10:
        table, x = rng.integers(-128, 128, 256).astype(np.int8), tensor(rng, int(rng.integers(1, 40)))
        return Case("lut", 10, block(table) + block(x) + words(x.size), table[x.astype(int) + 128].tobytes())
    if kind == 12:
        left, middle, right = (int(v) for v in rng.integers(0, 20, 3))
        fill, x = int(rng.integers(-128, 128)), tensor(rng, middle)
        missing = bool(rng.integers(0, 2))
        want = np.pad(np.full_like(x, fill) if missing else x, (left, right), constant_values=fill)
        payload = words(left, middle, right, fill) + block(None if missing else x)
        return Case("pad", 12, payload, want.tobytes())
    if kind == 13:
        rank = int(rng.integers(1, 7))
        x = tensor(rng, tuple(int(v) for v in rng.integers(1, 5, rank)))
        order = rng.permutation(rank)
        y = x.transpose(order)
        dims, strides = [*y.shape, *[1] * (6 - rank)], [*y.strides, *[0] * (6 - rank)]
        body = b"".join(words(d, s) for d, s in zip(dims, strides, strict=True))
        return Case(f"transpose {x.shape} {order}", 13, words(rank) + body + block(x), y.tobytes())
    if kind == 14:
        runs, mine, other = (int(v) for v in rng.integers(1, 9, 3))
        x = tensor(rng, (runs, mine))
        want = np.full((runs, mine + other), 0x55, np.int8)
        want[:, other:] = x
        return Case("concatenation", 14, words(mine, mine + other, runs, other) + block(x), want.tobytes())
    pixels, channels = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    columns = rng.integers(0, pixels, int(rng.integers(1, 17))).astype("<u2")
    x = tensor(rng, (pixels, channels))
    return Case("resize", 15, words(columns.size, channels) + block(columns) + block(x), x[columns].tobytes())


def edge_case(rng):
    """QUANTIZE (kind 16) or DEQUANTIZE (kind 17), with ties, out-of-range values and infinities."""
    n, zero = int(rng.integers(1, 40)), int(rng.integers(-128, 128))
    scale = np.float32(rng.choice([0.25, 1 / 128, rng.uniform(1e-4, 3)]))
    head = words(n, zero) + block(np.array([scale], "<f4"))
    if rng.integers(0, 2):
        q = tensor(rng, n)
        y = (q.astype(np.int32) - zero).astype(np.float32) * scale
        return Case(f"dequantize {scale} {zero}", 17, head + block(q), y.astype("<f4").tobytes())
    ties = rng.integers(-400, 400, n).astype(np.float32) / 2 * scale
    x = np.where(rng.integers(0, 2, n) == 0, ties, rng.normal(0, 100, n) * scale).astype(np.float32)
    x[rng.integers(0, n)] = rng.choice([np.inf, -np.inf, 3e38])
    with np.errstate(over="ignore"):
        ratio = (x / scale).astype(np.float32).astype(np.float64)
    rounded = np.clip(np.sign(ratio) * np.floor(np.abs(ratio) + 0.5), -1000, 1000)
    want = np.clip(rounded + zero, -128, 127).astype(np.int8)
    return Case(f"quantize {scale} {zero}", 16, head + block(x.astype("<f4")), want.tobytes())


MAKERS = {
    "conv": conv_case,
    "dense": dense_case,
    "depthwise": depthwise_case,
    "pool": pool_case,
    "global": global_case,
    "binary": binary_case,
    "copy": copy_case,
    "edge": edge_case,
}
