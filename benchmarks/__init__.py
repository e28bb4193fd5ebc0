"""Measurements: each `make bench-NAME` writes `benchmarks/results/NAME.json`, and docs are generated from that."""
