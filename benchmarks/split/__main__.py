"""The figures of learned bottlenecks.

    python -m benchmarks.split [PART...]      all parts without one; a part alone replaces its own rows only

`codec` and `heads` measure time and want a quiet machine. `curves`, `curves_b` and `scenes` compute the rows of the committed points;
`study` trains and measures those of the first two again, hours on two cores, and what is done is not done again.
`python -m benchmarks.split.scene_curves` does so for the third, hours or minutes on a GPU.
"""

import sys

from benchmarks.suite import Part, Suite

SUITE = Suite(
    "split",
    "The figures of learned bottlenecks.",
    {
        "codec": Part("benchmarks.split.codec", 1),
        "fuzz": Part("benchmarks.split.fuzz", 11),
        "shipped": Part("benchmarks.split.shipped", 3),
        "scenes": Part("benchmarks.split.scene_rows", 2),
        "es": Part("benchmarks.split.entropic_student", 3),
        "coder": Part("benchmarks.split.coder_share", 2),
        "arch": Part("benchmarks.split.arch", 3),
        "heads": Part("benchmarks.split.heads", 1),
        "curves": Part("benchmarks.split.study_rows", 2),
        "curves_b": Part("benchmarks.split.curves_b", 3),
        "study": Part("benchmarks.split.study_part", 420),
    },
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
