"""The figures of profiles, prediction and planning.

    python -m benchmarks.plan [PART...]      all parts without one; a part alone replaces its own rows only

All but `optimal` and `arena` measure time and want a quiet machine.
"""

import sys

from benchmarks.suite import Part, Suite

SUITE = Suite(
    "plan",
    "The figures of profiles, prediction and planning.",
    {
        "optimal": Part("benchmarks.bench_plan", 1),
        "arena": Part("benchmarks.bench_arena", 1),
        "energy": Part("benchmarks.bench_profile", 1),
        "rounds": Part("benchmarks.bench_rounds", 4),
        "predict": Part("benchmarks.bench_predict", 3),
        "served": Part("benchmarks.bench_served", 2),
    },
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
