"""These tests need the emulated user space of `scripts/setup-arm64`: they run when asked for, and say so when not."""


def pytest_collection_modifyitems(config, items):
    """Deselect (pytest counts and prints that) unless the command names them: `make test-arm64`."""
    if "arm64" in config.option.markexpr or any("arm64" in argument for argument in config.args):
        return
    chosen = [item for item in items if item.get_closest_marker("arm64") is None]
    left_out = [item for item in items if item.get_closest_marker("arm64") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen
