"""Inputs that a proof runs on: random over the full range, and constants at the edges of int8 and at the zero point."""

from __future__ import annotations

import numpy as np

from export.mcu.network import Network
from export.mcu.oracle import Int8s

KINDS = ("random", "random", "zero point", "lowest", "highest")


def proof_inputs(network: Network, *, count: int = len(KINDS), seed: int = 0) -> list[tuple[Int8s, ...]]:
    """Make input sets.

    Args:
        network: Gives shapes and zero points.
        count: How many sets; beyond the five kinds more random ones follow.
        seed: Of the random ones.

    Returns:
        For each set one int8 array per network input, shape (height, width, channels).
    """
    generator = np.random.default_rng(seed)
    sets = []
    for number in range(count):
        kind = KINDS[number] if number < len(KINDS) else "random"
        arrays = []
        for port in network.inputs:
            shape = network.values[port.key].shape
            if kind == "random":
                arrays.append(generator.integers(-128, 128, shape, dtype=np.int8))
            else:
                level = {"zero point": port.quant.zero_point, "lowest": -128, "highest": 127}[kind]
                arrays.append(np.full(shape, level, np.int8))
        sets.append(tuple(arrays))
    return sets
