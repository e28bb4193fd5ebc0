"""Two small networks, exported and linked for both slots, and the example's firmware, built once."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.mcu.to_c import McuOptions, export_mcu

EXAMPLE = Path(__file__).parents[3] / "examples" / "mcu_update"
BOARD = "test-board"


@dataclass(frozen=True)
class Board:
    id: str = BOARD
    sram_bytes: int | None = 64 * 1024
    flash_bytes: int | None = 256 * 1024


def _tensor(model, shape, scale, zero_point=0, data=None):
    tensor = schema.TensorT()
    tensor.shape, tensor.name = list(shape), f"t{len(model.subgraphs[0].tensors)}"
    tensor.type = schema.TensorType.INT32 if data is not None and data.dtype == np.int32 else schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [float(np.float32(scale))], [zero_point]
    tensor.buffer = 0
    if data is not None:
        tensor.buffer = len(model.buffers)
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = np.frombuffer(data.tobytes(), np.uint8)
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _node(model, name, inputs, outputs, options, **fields):
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 1
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = len(model.operatorCodes), inputs, outputs
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    operator.builtinOptions = getattr(schema, options + "T")()
    for field, value in fields.items():
        setattr(operator.builtinOptions, field, value)
    model.operatorCodes.append(code)
    model.subgraphs[0].operators.append(operator)


def _network(seed: int) -> bytes:
    """8 x 8 x 1 -> CONV_2D 4 channels, stride 2 -> FULLY_CONNECTED 5, random int8 weights."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.integers(-127, 128, shape).astype(np.int8)

    def bias(count):
        return rng.integers(-2000, 2000, count).astype(np.int32)

    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, model.subgraphs = [], [], [graph]
    source = _tensor(model, (1, 8, 8, 1), 0.04, -5)
    kernel, offset = (
        _tensor(model, (4, 3, 3, 1), 0.01, data=weights(4, 3, 3, 1)),
        _tensor(model, (4,), 4e-4, data=bias(4)),
    )
    middle = _tensor(model, (1, 4, 4, 4), 0.08, -3)
    _node(model, "CONV_2D", [source, kernel, offset], [middle], "Conv2DOptions", padding=0, strideH=2, strideW=2)
    matrix, last = _tensor(model, (5, 64), 0.01, data=weights(5, 64)), _tensor(model, (5,), 8e-4, data=bias(5))
    answer = _tensor(model, (1, 5), 0.5, 7)
    _node(model, "FULLY_CONNECTED", [middle, matrix, last], [answer], "FullyConnectedOptions")
    graph.inputs, graph.outputs = [source], [answer]
    packer = flatbuffers.Builder(1024)
    packer.Finish(model.Pack(packer), b"TFL3")
    return bytes(packer.Output())


def _make(*arguments: str) -> None:
    done = subprocess.run(
        ["make", "-s", "-C", str(EXAMPLE), f"PYTHON={sys.executable}", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def make_update():
    """The example's make_update.py as a module."""
    spec = importlib.util.spec_from_file_location("make_update", EXAMPLE / "make_update.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Kit:
    """What the tests work with: the signing key, firmware in `build`, images and golden bytes of both models."""

    build: Path
    key: object
    images: dict[str, tuple[bytes, bytes]]
    outputs: dict[str, bytes]
    input: bytes
    package: object  # function of (model, counter, ...) -> bytes


@pytest.fixture(scope="session")
def kit(tmp_path_factory, make_update) -> Kit:
    base = tmp_path_factory.mktemp("mcu_update")
    build = base / "build"
    assert make_update.main(["keys", str(build / "keys"), "--board", BOARD]) == 0
    images, outputs, inputs = {}, {}, set()
    for seed, name in enumerate(("old", "new")):
        export_mcu(_network(seed), Board(), base / name, McuOptions(name="model"))
        _make("images", f"BUILD={build}", f"EXPORT={base / name}", f"OUT={build / name}")
        images[name] = tuple((build / f"{name}_{slot}.bin").read_bytes() for slot in "ab")
        outputs[name] = (base / name / "golden" / "00_output.bin").read_bytes()
        inputs.add((base / name / "golden" / "00_input.bin").read_bytes())
    _make("device", "sweep", f"BUILD={build}", f"BOARD_SUPPORT={base / 'new' / 'proof'}")
    assert outputs["old"] != outputs["new"]
    signing = make_update.read_key(build / "keys" / "signing.pem")

    def package(model, counter, *, key=signing, board=BOARD, swapped=False):
        pair = images[model]
        return make_update.make_package(key, board, counter, pair[::-1] if swapped else pair)

    return Kit(build, signing, images, outputs, inputs.pop(), package)


class Device:
    """A simulated device: every power-up is a QEMU process of its own; the flash is a file."""

    def __init__(self, folder: Path, kit: Kit):
        self.folder, self.kit = folder, kit
        (folder / "input.bin").write_bytes(kit.input)

    def power_up(self, update: bytes | None = None, cut: tuple[int, int] | None = None, elf="device") -> str:
        for name, data in (("update.bin", update), ("cut.bin", cut and struct.pack("<II", *cut))):
            (self.folder / name).unlink(missing_ok=True)
            if data is not None:
                (self.folder / name).write_bytes(data)
        command = [
            "qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none",
            "-semihosting-config", "enable=on,target=native", "-kernel", str(self.kit.build / f"{elf}.elf"),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=200)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed
        return printed

    def lines(self, slot: str, counter: int, model: str, note: str = "") -> str:
        """What a boot of this model prints."""
        output = " ".join(f"{byte:08x}" for byte in self.kit.outputs[model])
        return f"boot: slot {slot}, counter {counter}{note}\noutput: {output}\n"

    @property
    def flash(self) -> bytes:
        return (self.folder / "flash.bin").read_bytes()

    def damage(self, offset: int) -> None:
        flash = bytearray(self.flash)
        flash[offset] ^= 1
        (self.folder / "flash.bin").write_bytes(flash)


@pytest.fixture
def empty_device(tmp_path, kit) -> Device:
    return Device(tmp_path, kit)


@pytest.fixture(scope="session")
def first_flash(kit, tmp_path_factory) -> bytes:
    """The flash of a device that runs "old" with counter 5 from slot A."""
    device = Device(tmp_path_factory.mktemp("first"), kit)
    printed = device.power_up(kit.package("old", 5))
    assert printed == "boot: no verified model\nupdate: installed\n" + device.lines("A", 5, "old")
    return device.flash


@pytest.fixture
def device(empty_device, first_flash) -> Device:
    (empty_device.folder / "flash.bin").write_bytes(first_flash)
    return empty_device


@pytest.fixture(scope="session")
def native_crypto(kit, tmp_path_factory) -> Path:
    """The firmware's hashes and signature check as a library for this machine."""
    assert shutil.which("cc")
    library = tmp_path_factory.mktemp("crypto") / "crypto.so"
    sources = [
        EXAMPLE / "firmware" / "sha2.c",
        EXAMPLE / "firmware" / "signature.c",
        EXAMPLE / "build" / "monocypher" / "monocypher.c",
    ]
    flags = ["-std=c99", "-O2", "-fPIC", "-shared", f"-I{EXAMPLE / 'build' / 'monocypher'}"]
    subprocess.run(["cc", *flags, *map(str, sources), "-o", str(library)], check=True)
    return library
