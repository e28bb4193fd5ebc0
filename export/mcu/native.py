"""Compiles a generated network for this machine and calls it, so that every tensor can be compared."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.mcu.emit_network import NetworkCode
from export.mcu.errors import ProofError, ToolchainError
from export.mcu.folder import HERE, library_sources
from export.mcu.graph import tensor_places
from export.mcu.network import Network
from export.mcu.oracle import Int8s
from split.patch_plan import InputMode, Plan

FLAGS = ("-std=c99", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wconversion")
INCLUDES = (f"-I{HERE / 'kernels'}", f"-I{HERE / 'runtime'}")
PULL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)


def build_library(folder: Path, *, compiler: str = "cc", flags: Sequence[str] = ("-O2",)) -> Path:
    """Compile kernels and step loop once into ``folder``; many networks can then be linked with them quickly.

    Raises:
        ToolchainError: There is no compiler.
        ProofError: The C does not compile without warnings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in library_sources() if path.suffix == ".c"]
    objects = []
    for source in sources:
        target = folder / (Path(source).stem + ".o")
        _compile([compiler, *FLAGS, *flags, *INCLUDES, "-c", source, "-o", str(target)])
        objects.append(target)
    return folder


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except FileNotFoundError as error:
        raise ToolchainError(f"no C compiler {command[0]!r}; install one (gcc or clang).") from error
    if done.returncode != 0:
        raise ProofError(f"the generated C does not compile: {done.stderr.strip()[-1500:]}")


class NativeNetwork:
    """A generated network as a function on this machine.

    Args:
        network: The network.
        plan: The plan that ``code`` was written for.
        code: Its C.
        library: Result of ``build_library``.
        folder: An empty folder for the shared object, one for each network.

    Raises:
        ToolchainError: There is no compiler.
        ProofError: The C does not compile without warnings.
    """

    def __init__(
        self, network: Network, plan: Plan, code: NetworkCode, *, library: Path, folder: Path, compiler: str = "cc"
    ) -> None:
        self.network, self.plan = network, plan
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{code.prefix}.h").write_text(code.header)
        source = folder / f"{code.prefix}.c"
        source.write_text(code.source)
        shared = folder / f"{code.prefix}.so"
        objects = [str(path) for path in sorted(library.glob("*.o"))]
        includes = [*INCLUDES, f"-I{folder}"]
        _compile([compiler, *FLAGS, "-O1", *includes, "-shared", str(source), *objects, "-o", str(shared)])
        self._run = getattr(ctypes.CDLL(str(shared)), f"{code.prefix}_run")
        self._places = tensor_places(network)
        words = -(-max(plan.arena_bytes, 4) // 8)
        self._memory = np.zeros(words + 16, np.int64)
        self.arena: Int8s = self._memory.view(np.int8)[64 : 64 + plan.arena_bytes]

    def run(self, inputs: Sequence[Int8s], *, fill: int = 0x55) -> tuple[Int8s, ...]:
        """Run once on an arena that was filled with ``fill``.

        Args:
            inputs: One int8 array per network input, shape (height, width, channels).
            fill: Byte that the arena holds before: results must not depend on it.

        Returns:
            One int8 array per network output.

        Raises:
            ProofError: The run reports a failure or writes outside of its arena.
        """
        self._memory.view(np.int8)[:] = fill
        self._load(inputs)
        status = self._call(inputs[0])
        guard = self._memory.view(np.int8)
        outside = np.concatenate([guard[:64], guard[64 + self.plan.arena_bytes :]])
        if status != 0 or (outside != fill).any():
            raise ProofError(
                f"the run returned {status} and changed {int((outside != fill).sum())} bytes outside of the arena."
            )
        last = self.plan.segments[-1]
        return tuple(
            self.read(last.buffer(self._places[port.key]).offset, self.network.values[port.key].shape)
            for port in self.network.outputs
        )

    def _load(self, inputs: Sequence[Int8s]) -> None:
        outside = self.plan.input_mode in (InputMode.PULLED, InputMode.EXTERNAL)
        for number, (port, data) in enumerate(zip(self.network.inputs, inputs, strict=True)):
            if number == 0 and outside:
                continue
            offset = self.plan.segments[0].buffer(self._places[port.key]).offset
            self.arena[offset : offset + data.size] = data.reshape(-1)

    def _call(self, frame: Int8s) -> int:
        arena = ctypes.c_void_p(self.arena.ctypes.data)
        if self.plan.input_mode is InputMode.EXTERNAL:
            whole = np.ascontiguousarray(frame)
            return int(self._run(arena, ctypes.c_void_p(whole.ctypes.data)))
        if self.plan.input_mode is not InputMode.PULLED:
            return int(self._run(arena))
        rows = frame.reshape(frame.shape[0], -1)

        def give(_: int | None, y: int, target: int) -> int:
            ctypes.memmove(target, np.ascontiguousarray(rows[y]).ctypes.data, rows.shape[1])
            return 0

        return int(self._run(arena, PULL(give), None))

    def read(self, offset: int, shape: tuple[int, int, int]) -> Int8s:
        """A copy of a tensor in the arena."""
        size = shape[0] * shape[1] * shape[2]
        return self.arena[offset : offset + size].reshape(shape).astype(np.int8, copy=True)
