"""The Python API of headtail: one lazy façade over the packages.

    import headtail

    artefact = headtail.load("build/head")
    session = headtail.open_session(artefact)

Nothing heavy is imported until a name is used: `import headtail` costs milliseconds and pulls in no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from device_profiles.errors import EdgeError
from device_profiles.version import __version__

if TYPE_CHECKING:
    from device_profiles.load import list_boards, load_board
    from edge_runtime.artefact import open_artefact as load
    from edge_runtime.session import open_session

# name -> where it lives
_LAZY = {
    "list_boards": "device_profiles.load:list_boards",
    "load": "edge_runtime.artefact:open_artefact",
    "load_board": "device_profiles.load:load_board",
    "open_session": "edge_runtime.session:open_session",
}

__all__ = ["EdgeError", "__version__", "list_boards", "load", "load_board", "open_session"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import a name of the API when it is first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'headtail' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the API."""
    return sorted(__all__)
