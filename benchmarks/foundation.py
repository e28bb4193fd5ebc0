"""The figures of export, cut, runtime and offload.

python -m benchmarks.foundation [PART...]      all parts without one; a part alone replaces its own rows only
"""

import sys

from benchmarks.suite import Part, Suite

SUITE = Suite(
    "foundation",
    "The figures of export, cut, runtime and offload.",
    {
        "export": Part("benchmarks.bench_export", 4),
        "cuts": Part("benchmarks.bench_cuts", 2),
        "runtime": Part("benchmarks.bench_runtime", 2),
        "rtt": Part("benchmarks.bench_rtt", 1),
        "stream": Part("benchmarks.bench_stream", 2),
        "fuzz": Part("benchmarks.bench_fuzz", 1),
        "arm64": Part("benchmarks.bench_arm64", 3),
    },
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
