"""How fast this machine reads weights while it multiplies: the capability and rate that a nodes file wants.

Weights of a model do not fit into caches, so neither do the matrices that are multiplied here.
"""

import contextlib
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from orchestrator.tensor_parallel.kernels import product

_SIDE = 2048  # of a matrix, as in the race of kernels
_MATRIX_BYTES = 4 * _SIDE**2
_ROUNDS = 3
_FEWEST_BYTES = 256 << 20
_CACHES = 4  # times the last level's size
_CHILD_S = 120.0  # on a small board, the start of torch included
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def measured_read_mb_per_s() -> float:
    """Megabytes of float32 weights a second in products with one token, by the kernel that won here: the median.

    It takes `sample_bytes` of memory for a second or so.
    """
    count = max(1, round(sample_bytes(last_level_cache_bytes(), _available_bytes()) / _MATRIX_BYTES))
    took_s = []
    with torch.inference_mode():
        matrices, x = [torch.full((_SIDE, _SIDE), 0.01) for _ in range(count)], torch.ones((1, _SIDE))
        for _ in range(_ROUNDS):
            for weights in matrices:  # each was driven out of the caches by the others
                began = time.perf_counter()
                product(x, weights)
                took_s.append(time.perf_counter() - began)
    return _MATRIX_BYTES / 1e6 / statistics.median(took_s)


def read_mb_per_s_of_a_child(threads: int | None) -> float | None:
    """As `measured_read_mb_per_s`, in a process whose memory is given back and does not count as this one's.

    Args:
        threads: Of torch; null leaves its own number.

    Returns:
        Megabytes a second; null where the process failed or took too long.
    """
    command = [sys.executable, "-m", __name__, *([] if threads is None else [str(threads)])]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_CHILD_S)
        return float(done.stdout)
    return None


def sample_bytes(cache_bytes: int, available_bytes: int | None) -> int:
    """How much to read so that no cache holds it.

    Args:
        cache_bytes: Of the last level; 0 where that is not known.
        available_bytes: Memory that is free to use; null where that is not known.

    Returns:
        Four times the cache and at least 256 MiB, but no more than a quarter of the memory.
    """
    wanted = max(_FEWEST_BYTES, _CACHES * cache_bytes)
    return wanted if available_bytes is None else min(wanted, available_bytes // 4)


def last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of the first processor in bytes; 0 where the system does not say."""
    largest = 0
    for path in folder.glob("index*/size"):
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
            largest = max(largest, int(found[1]) * _UNITS[found[2]] if found else 0)
    return largest


def _available_bytes() -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return None if found is None else int(found[1]) << 10
    return None


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    sys.stdout.write(f"{measured_read_mb_per_s()}\n")
