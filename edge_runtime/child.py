"""Where a Python that headtail starts finds headtail, and nothing of the working directory."""

import os
from pathlib import Path

ROOT = str(Path(__file__).parents[1])  # the child's working directory too: `python -m` looks for modules there first


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment, in which headtail is found where this process found it.

    Args:
        more: Variables that are set besides.
    """
    paths = [ROOT, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **more}
