"""The figures of learned bottlenecks: entropy coder, comparison with sc2bench, rate-accuracy study (docs/benchmarks.md)."""
