"""How fast this machine reads weights while it multiplies: the capability and rate that a nodes file wants."""

import time

import torch

from orchestrator.tensor_parallel.kernels import kernel_profile

_SIDE = 2048  # of the matrix, as in the race of kernels
_ROUNDS = 5


def measured_read_mb_per_s() -> float:
    """Megabytes of float32 weights a second in a product with one token, by the kernel that won here."""
    profile = kernel_profile()
    if profile is None:
        return _by_torch()
    race = profile.float32_one
    return 2 * 4 * _SIDE**2 / (race.c_us if race.chosen == "c" else race.torch_us)  # a race is two products


def _by_torch() -> float:
    with torch.inference_mode():
        weights, x, best_s = torch.full((_SIDE, _SIDE), 0.01), torch.ones((1, _SIDE)), float("inf")
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weights)
            best_s = min(best_s, time.perf_counter() - began)
    return 4 * _SIDE**2 / 1e6 / best_s
