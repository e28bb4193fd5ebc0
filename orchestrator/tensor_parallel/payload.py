"""How a partial sum crosses the network: as it is (float32, exact), or smaller with a cost in accuracy.

A rank rounds its own partial as the others receive it, so that every rank still adds up the same numbers.
"""

from typing import Any, Literal

import torch

Payload = Literal["float32", "float16", "int8"]
_BLOCK = 32  # values that share a scale at 8 bit

Tensor = Any  # torch is untyped here


def payload_bytes(kind: Payload, shape: tuple[int, int]) -> int:
    """Bytes of a message."""
    values = shape[0] * shape[1]
    return {"float32": 4 * values, "float16": 2 * values, "int8": values + 4 * -(-values // _BLOCK)}[kind]


def encode(tensor: Tensor, kind: Payload) -> memoryview:
    """A message of a float32 tensor."""
    if kind == "float32":
        found = tensor.contiguous()
    elif kind == "float16":
        found = tensor.clamp(-65504.0, 65504.0).to(torch.float16).contiguous()
    else:
        flat = tensor.reshape(-1)
        blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % _BLOCK)).view(-1, _BLOCK)
        scales = blocks.abs().amax(dim=1) / 127
        steps = torch.where(scales[:, None] > 0, blocks / scales[:, None], torch.zeros(())).round().to(torch.int8)
        data = b"".join((scales.numpy().tobytes(), steps.view(-1)[: flat.numel()].numpy().tobytes()))
        return memoryview(data)
    return memoryview(found.numpy()).cast("B")


def decode(data: bytearray | memoryview, shape: tuple[int, int], kind: Payload) -> Tensor:
    """The float32 tensor of a message of the right length."""
    if kind != "int8":
        dtype = torch.float32 if kind == "float32" else torch.float16
        return torch.frombuffer(data, dtype=dtype).view(shape).to(torch.float32)
    values = shape[0] * shape[1]
    count = -(-values // _BLOCK)
    scales = torch.frombuffer(data, dtype=torch.float32, count=count)
    steps = torch.frombuffer(data, dtype=torch.int8, count=values, offset=4 * count).to(torch.float32)
    return (steps * scales.repeat_interleave(_BLOCK)[:values]).view(shape)


def rounded(tensor: Tensor, kind: Payload) -> Tensor:
    """What the others receive of a tensor."""
    if kind == "float32":
        return tensor
    return decode(bytearray(encode(tensor, kind)), (tensor.shape[0], tensor.shape[1]), kind)
