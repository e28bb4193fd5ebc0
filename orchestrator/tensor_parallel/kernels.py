"""Products with whatever kernel is fastest on this machine: a short race on first use, whose outcome is kept beside the library.

Candidates are those that take weights as they lie in the file: our C and torch. With `HEADTAIL_NO_C`, or without a compiler,
there is torch alone and no race.
"""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from orchestrator.tensor_parallel import few, lowbit, native
from orchestrator.tensor_parallel.buffers import Buffer
from orchestrator.tensor_parallel.config import Encoding

_ROWS = _COLUMNS = 2048
_ROUNDS = 5
_MOST_S = 0.2  # for one pair
_PREFERENCE = 1.1  # torch must be so much faster: with our C a sequence's values do not depend on who shares its step

Kernel = Literal["c", "torch"]
Tensor = Any  # torch is untyped here


class Race(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Microseconds of a 2048 x 2048 product, the best of a few."""

    chosen: Kernel
    c_us: float
    torch_us: float


class KernelProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is fastest on this machine."""

    target: str  # instruction set of our C
    threads: int
    float32_one: Race  # token
    float32_few: Race  # 8 tokens
    int8: Race
    int4: Race

    def chosen(self, encoding: Encoding, tokens: int) -> Kernel:
        """The kernel for so many tokens."""
        if encoding != "float32":
            return (self.int8 if encoding == "int8" else self.int4).chosen
        return "torch" if tokens > few.FEW else (self.float32_one if tokens == 1 else self.float32_few).chosen


def product(x: Tensor, weights: "Tensor | lowbit.Packed") -> Tensor:
    """The product x W^T, (n, columns) -> (n, rows)."""
    if isinstance(weights, lowbit.Packed):
        library = _library_for(weights.encoding, x.shape[0])
        return lowbit.by_torch(weights, x) if library is None else lowbit.by_c(library, weights, x)
    library = _library_for("float32", x.shape[0])
    return torch.nn.functional.linear(x, weights) if library is None else few.product(library, x, weights)


def mix(x: Tensor, weights: "Tensor | lowbit.Packed") -> Tensor:
    """The product x W with W stored transposed, (n, rows) -> (n, H)."""
    if isinstance(weights, lowbit.Packed):
        return product(x, weights)
    library = _library_for("float32", x.shape[0])
    return x @ weights if library is None else few.mix(library, x, weights)


def _library_for(encoding: Encoding, tokens: int) -> Any:  # noqa: ANN401 - a foreign library
    profile = None if tokens == 0 else kernel_profile()
    return native.library() if profile is not None and profile.chosen(encoding, tokens) == "c" else None


def kernel_profile() -> KernelProfile | None:
    """The outcome of the race with as many threads as torch has; null where torch is alone."""
    return None if native.library() is None else _settled(torch.get_num_threads())


@functools.cache
def _settled(threads: int) -> KernelProfile:
    path = profile_path(threads)
    try:
        return msgspec.json.decode(path.read_bytes(), type=KernelProfile)
    except (OSError, msgspec.DecodeError):
        found = race(threads)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
        partial.replace(path)
    except OSError:  # the next process races again
        partial.unlink(missing_ok=True)
    return found


def profile_path(threads: int) -> Path:
    """Where the outcome is kept; another processor, torch or source has another name."""
    return native.cache_folder() / f"kernels-{native.machine_identity(torch.__version__, threads)}.json"


def race(threads: int) -> KernelProfile:
    """Time every candidate, less than a second."""
    library, target = native.library(), native.target()
    assert library is not None  # the caller's to know
    assert target is not None
    with torch.inference_mode():
        exact = Buffer(4 * _ROWS * _COLUMNS).tensor(0, (_ROWS, _COLUMNS)).fill_(0.01)
        one, eight = torch.ones((1, _COLUMNS)), torch.ones((8, _COLUMNS))

        def floats(x: Tensor) -> Race:
            def by_c() -> None:
                few.product(library, x, exact)
                few.mix(library, x, exact)

            def by_torch() -> None:
                torch.nn.functional.linear(x, exact)
                torch.matmul(x, exact)

            return _faster(by_c, by_torch)

        def packed(encoding: Encoding) -> Race:
            data = torch.zeros(lowbit.encoded_bytes(encoding, _ROWS * _COLUMNS), dtype=torch.uint8)
            matrix = lowbit.Packed(data, _ROWS, _COLUMNS, encoding, by_column=False)
            return _faster(lambda: lowbit.by_c(library, matrix, one), lambda: lowbit.by_torch(matrix, one))

        return KernelProfile(
            target=target,
            threads=threads,
            float32_one=floats(one),
            float32_few=floats(eight),
            int8=packed("int8"),
            int4=packed("int4"),
        )


def _faster(by_c: Callable[[], object], by_torch: Callable[[], object]) -> Race:
    best, end = [float("inf"), float("inf")], time.perf_counter() + _MOST_S
    for number in range(_ROUNDS):
        if number > 1 and time.perf_counter() > end:
            break
        for place, run in enumerate((by_c, by_torch)):
            began = time.perf_counter()
            run()
            best[place] = min(best[place], 1e6 * (time.perf_counter() - began))
    c_us, torch_us = best
    return Race(chosen="torch" if c_us > _PREFERENCE * torch_us else "c", c_us=c_us, torch_us=torch_us)
