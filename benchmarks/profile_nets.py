"""Networks with random weights in the shapes of well-known ones: what the profiler's and planner's benchmarks measure.

The predictor, its chains and its formula were written with other networks at hand (MobileNetV1, ResNet18, SqueezeNet, VGG);
these four were chosen before any of them was measured.
"""

from collections.abc import Callable

from export.chain_nets import NetBuilder, Precision, chain, write_net

__all__ = ["NETS", "SIZES", "chain", "darknet", "inception", "mobile_v2", "residual_50", "write_net"]


def mobile_v2(size: int = 224, *, precision: Precision = "fp32") -> bytes:
    """Inverted residuals after MobileNetV2 (arXiv 1801.04381, table 2)."""
    net = NetBuilder(size, precision=precision)
    x = net.conv(net.source, 32, 3, 2)
    for expand, out, repeats, first in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for index in range(repeats):
            stride = first if index == 0 else 1
            y = net.conv(x, x[1] * expand, 1) if expand > 1 else x
            y = net.conv(net.conv(y, y[1], 3, stride, groups=y[1]), out, 1, relu=False)
            x = net.add(y, x) if stride == 1 and x[1] == out else y
    return net.finish(net.conv(x, 1280, 1))


def residual_50(size: int = 160, width: int = 32, *, precision: Precision = "fp32") -> bytes:
    """Bottleneck blocks after ResNet50 (arXiv 1512.03385, table 1), half as wide."""
    net = NetBuilder(size, precision=precision)
    x = net.pool(net.conv(net.source, width, 7, 2))
    for stage, repeats in enumerate((3, 4, 6, 3)):
        thin = width << stage
        for block in range(repeats):
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv(net.conv(x, thin, 1), thin, 3, stride), 4 * thin, 1, relu=False)
            x = net.add(y, x if block else net.conv(x, 4 * thin, 1, stride, relu=False))
    return net.finish(x)


def darknet(size: int = 224, width: int = 16, *, precision: Precision = "fp32") -> bytes:
    """Alternating 3x3 and 1x1 convolutions after Darknet-19 (arXiv 1612.08242, table 6), half as wide."""
    net = NetBuilder(size, precision=precision)
    x = net.source
    for stage, layers in enumerate((1, 1, 3, 3, 5, 5)):
        for index in range(layers):
            x = net.conv(x, width << (stage - index % 2), 3 - 2 * (index % 2))
        x = net.pool(x) if stage < 5 else x
    return net.finish(x)


def inception(size: int = 192, *, precision: Precision = "fp32") -> bytes:
    """Four branches whose channels are joined, after GoogLeNet (arXiv 1409.4842, table 1); 3x3 where it has 5x5."""
    net = NetBuilder(size, precision=precision)
    x = net.pool(net.conv(net.source, 64, 7, 2))
    x = net.pool(net.conv(net.conv(x, 64, 1), 192, 3))
    for index, (one, thin, three, thin5, five, last) in enumerate([
        (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
    ]):  # fmt: skip
        left = net.concat(net.conv(x, one, 1), net.conv(net.conv(x, thin, 1), three, 3))
        right = net.concat(net.conv(net.conv(x, thin5, 1), five, 3), net.conv(x, last, 1))
        x = net.concat(left, right)
        x = net.pool(x) if index in (1, 5) else x
    return net.finish(x)


SIZES = {"mobile_v2": 224, "residual_50": 160, "darknet": 224, "inception": 192}
NETS: dict[str, Callable[..., bytes]] = {
    "mobile_v2": mobile_v2,
    "residual_50": residual_50,
    "darknet": darknet,
    "inception": inception,
}
