"""Our C for products, compiled for the processor at hand on first use and kept in ~/.cache/headtail."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent / "csrc"
_SOURCES = (_FOLDER / "lowbit.c", _FOLDER / "few.c")
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-Wall", "-Wextra")

_Pointer, _Long, _Int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_Shape = ctypes.POINTER(ctypes.c_int64)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; null without a compiler or with HEADTAIL_NO_C."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if os.environ.get("HEADTAIL_NO_C") or not compiler:
        return None
    program = cache_folder() / f"products-{_identity(f'{compiler} {_FLAGS}')}.so"
    try:
        if not program.is_file():
            _compile(compiler, program)
        found = ctypes.CDLL(str(program))
    except (OSError, subprocess.CalledProcessError):
        return None
    found.ht_lowbit_round.argtypes = [_Pointer, _Long, _Long, _Pointer, _Pointer, _Pointer]
    found.ht_lowbit_product.argtypes = [_Pointer, _Int, _Int, _Shape, _Pointer, _Pointer, _Pointer, _Pointer, _Int]
    found.ht_few_product.argtypes = found.ht_few_mix.argtypes = [_Pointer, _Pointer, _Pointer, _Shape, _Int]
    for function in (found.ht_lowbit_round, found.ht_lowbit_product, found.ht_few_product, found.ht_few_mix):
        function.restype = None
    found.ht_lowbit_target.restype = ctypes.c_char_p
    return found


def target() -> str | None:
    """Name of the instruction set that the library was compiled for."""
    found = library()
    return None if found is None else str(found.ht_lowbit_target().decode())


def machine_identity(*more: object) -> str:
    """Names this processor, the sources of the library, and what else is given."""
    return _identity(" ".join(map(str, more)))


def cache_folder() -> Path:
    """Where what was found out about this machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headtail"


def _compile(compiler: str, program: Path) -> None:
    program.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as work:
        built = Path(work, "products.so")
        command = [*compiler.split(), *_FLAGS, *map(str, _SOURCES), "-o", str(built), "-lm"]
        subprocess.run(command, capture_output=True, check=True)
        built.replace(program)


def _identity(more: str) -> str:
    digest = hashlib.sha256(f"{platform.machine()} {_processor()} {more}".encode())
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
