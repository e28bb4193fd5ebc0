"""Networks with random weights in the shapes of well-known ones: what the profiler's and planner's benchmarks measure."""

from collections.abc import Callable

from export.chain_nets import NetBuilder, Precision, chain, write_net

__all__ = ["NETS", "SIZES", "chain", "mobile_v1", "plain", "residual_18", "squeeze", "write_net"]


def mobile_v1(size: int = 224, width: float = 0.5, *, precision: Precision = "fp32") -> bytes:
    """Depthwise-separable chain after MobileNetV1."""
    net = NetBuilder(size, precision=precision)
    x = net.conv(net.source, int(32 * width), 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in plan:
        x = net.conv(x, x[1], 3, stride, groups=x[1])
        x = net.conv(x, int(out * width), 1)
    return net.finish(x)


def residual_18(size: int = 128, width: int = 32, *, precision: Precision = "fp32") -> bytes:
    """Residual blocks after ResNet18."""
    net = NetBuilder(size, precision=precision)
    x = net.pool(net.conv(net.source, width, 7, 2))
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            out = width << stage
            y = net.conv(net.conv(x, out, 3, stride), out, 3, relu=False)
            x = net.add(y, x if stride == 1 and x[1] == out else net.conv(x, out, 1, stride, relu=False))
    return net.finish(x)


def squeeze(size: int = 224, *, precision: Precision = "fp32") -> bytes:
    """Fire modules after SqueezeNet."""
    net = NetBuilder(size, precision=precision)
    x = net.pool(net.conv(net.source, 64, 3, 2))
    for index, (thin, wide) in enumerate([(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (64, 256)]):
        narrow = net.conv(x, thin, 1)
        x = net.concat(net.conv(narrow, wide, 1), net.conv(narrow, wide, 3))
        if index in (1, 3):
            x = net.pool(x)
    return net.finish(x)


def plain(size: int = 224, width: int = 32, *, precision: Precision = "fp32") -> bytes:
    """Plain 3x3 convolutions after VGG."""
    net = NetBuilder(size, precision=precision)
    x = net.source
    for stage in range(4):
        x = net.conv(x, width << stage, 3)
        x = net.pool(net.conv(x, width << stage, 3))
    return net.finish(x)


SIZES = {"mobile_v1": 224, "residual_18": 128, "squeeze": 224, "plain": 224}
NETS: dict[str, Callable[..., bytes]] = {
    "mobile_v1": mobile_v1,
    "residual_18": residual_18,
    "squeeze": squeeze,
    "plain": plain,
}
