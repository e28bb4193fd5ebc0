"""Facts about boards and links: the leaf package. It knows no engine and imports msgspec only."""

from device_profiles.errors import BoardError, EdgeError, FitError, MissingDependencyError

__all__ = ["BoardError", "EdgeError", "FitError", "MissingDependencyError"]
