"""Memory of this process."""

import os
from pathlib import Path


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; null where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
