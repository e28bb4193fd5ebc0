"""The figures of the fleet and its offload service.

python -m benchmarks.fleet [PART...]      all parts without one; a part alone replaces its own rows only
"""

import sys

from benchmarks.suite import Part, Suite

SUITE = Suite(
    "fleet",
    "The figures of the fleet and its offload service.",
    {
        "serve": Part("benchmarks.bench_serve", 2),
        "direct": Part("benchmarks.bench_direct", 1),
        "ends_once": Part("benchmarks.bench_ends_once", 2),
        "devices": Part("benchmarks.bench_fleet_devices", 6),
        "canary": Part("benchmarks.bench_fleet_canary", 2),
        "kills": Part("benchmarks.bench_fleet_kills", 4),
        "scale_out": Part("benchmarks.bench_fleet_scale", 3),
        "fuzz": Part("benchmarks.bench_fleet_fuzz", 2),
        "ota": Part("benchmarks.bench_ota", 3),
        "agent_update": Part("benchmarks.bench_agent_update", 1),
        "tuf": Part("benchmarks.bench_ota_tuf", 2),
        "rtt_tls": Part("benchmarks.bench_rtt_tls", 1),
        "agent": Part("benchmarks.bench_fleet_agent", 1),
    },
)

if __name__ == "__main__":
    sys.exit(SUITE.main())
