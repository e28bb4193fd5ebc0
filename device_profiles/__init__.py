"""Facts about boards and links: the leaf package. It knows no engine and imports msgspec only."""

from device_profiles.errors import BoardError, EdgeError, FitError, MissingDependencyError
from device_profiles.load import list_boards, load_board, load_board_file
from device_profiles.schema import DeviceProfile

__all__ = [
    "BoardError",
    "DeviceProfile",
    "EdgeError",
    "FitError",
    "MissingDependencyError",
    "list_boards",
    "load_board",
    "load_board_file",
]
