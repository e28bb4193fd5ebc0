"""Hosts with links between them on this machine; see `benchmarks.netlab.lab`."""

from benchmarks.netlab.lab import Access, LabError, LabHost, NetLab, Traffic, parse_access, unavailable

__all__ = ["Access", "LabError", "LabHost", "NetLab", "Traffic", "parse_access", "unavailable"]
