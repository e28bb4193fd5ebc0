"""Tests marked `shared_data` read third-party files: they run where HEADTAIL_DATA names a folder."""

import os


def pytest_collection_modifyitems(config, items):
    """Deselect (pytest counts and prints that) where there are no third-party files, unless the command asks for them."""
    if os.environ.get("HEADTAIL_DATA") or "shared_data" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("shared_data") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
