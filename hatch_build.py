"""Build hook: compiles the entropy coder where a C compiler exists (docs/adr/0006-native-code.md).

HEADTAIL_NO_C=1 skips it, CC names another compiler. Without the library headtail uses NumPy, with the same bytes.
"""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("ht_entropy.c", "ht_frame.c")
LIBRARY = "edge_runtime/csrc/libht_entropy.so"
# HT_ENTROPY_WIDE adds AVX-512 loops for x86-64, which are used where the processor has the instructions.
FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-DHT_ENTROPY_WIDE")


class CustomBuildHook(BuildHookInterface[Any]):
    """Builds the shared library in place, for wheels and editable installs, and tags the wheel for the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is put together."""
        if self.target_name != "wheel":
            return
        library = Path(self.root) / LIBRARY
        if not self._compile(library):
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        # The library knows nothing of Python: one wheel serves every version on this platform.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _compile(self, library: Path) -> bool:
        compiler = os.environ.get("CC") or shutil.which("cc")
        if os.environ.get("HEADTAIL_NO_C") or not compiler:
            self.app.display_info("entropy coder: no C wanted or found, NumPy will be used")
            return False
        partial = library.with_suffix(f".{os.getpid()}.tmp")
        sources = [str(library.parent / name) for name in SOURCES]
        try:
            command = [*compiler.split(), *FLAGS, *sources, "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                self.app.display_warning(f"entropy coder: {compiler} failed, NumPy will be used: {done.stderr[-500:]}")
                library.unlink(missing_ok=True)  # rather none than that of older sources
                return False
            partial.replace(library)
        except OSError as error:
            self.app.display_warning(f"entropy coder: cannot run {compiler}, NumPy will be used: {error}")
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True
