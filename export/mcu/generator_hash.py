"""A hash of the generator itself, so that a cached export never outlives the code that made it."""

import functools
import hashlib
from pathlib import Path

SUFFIXES = (".py", ".c", ".h", ".j2")


@functools.cache
def generator_hash() -> str:
    """sha256 of everything that generated C depends on beside the model: generator, kernels, templates, planner."""
    here = Path(__file__).parent
    planner = (here.parents[1] / "split").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted([*planner, *(path for path in here.rglob("*") if path.suffix in SUFFIXES)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
