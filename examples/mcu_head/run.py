"""A microcontroller runs the head of a network, the host runs the tail; all of it on this machine.

python run.py MODEL INPUTS.npz [--at ROW] [--board BOARD] [--broker URL] [--out FOLDER] [--count N]

MODEL: an int8 .tflite file, or an artefact that `headtail export --target <microcontroller>` wrote.
INPUTS.npz: samples of its input; they are the pictures, and the entropy coder's tables are counted on them.

1. `headtail split` writes head/ (C for the board: network, entropy coder, frame writer) and tail/.
2. make builds firmware/ with head/ for a simulated Cortex-M4.
3. `headtail tail serve` answers for the tail.
4. QEMU runs the firmware; bridge.py publishes the frames that it prints, and prints the classes that come back.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import TensorSpec
from export.cut_source import open_cut_source
from orchestrator.broker import start_broker
from orchestrator.demo.processes import Children, headtail

HERE = Path(__file__).resolve().parent
MAX_PICTURES = 1000
MACHINE = ("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none")
SEMIHOSTING = ("-semihosting-config", "enable=on,target=native")


def as_stored(samples: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Samples as the board's input holds them: int8, channels last; shape (count, ...)."""
    shape = tuple(spec.shape[1:])
    if samples.shape[1:] != shape and samples.ndim == 4 and samples.transpose(0, 2, 3, 1).shape[1:] == shape:
        samples = samples.transpose(0, 2, 3, 1)
    if samples.shape[1:] != shape or spec.dtype != "int8":
        raise SystemExit(f"Wanted samples of {shape} for an int8 input, found {samples.shape[1:]} for {spec.dtype}.")
    if samples.dtype == np.int8 or spec.quantisation is None:
        return np.ascontiguousarray(samples.astype(np.int8))
    steps = np.rint(samples / np.float32(spec.quantisation.scale)) + spec.quantisation.zero_point
    return np.ascontiguousarray(np.clip(steps, -128, 127).astype(np.int8))


def make_pair(model: Path, pictures: np.ndarray, arguments: argparse.Namespace) -> tuple[Artefact, Artefact]:
    """`headtail split`, with tables counted on the pictures."""
    out = arguments.out
    np.savez(out / "calibration.npz", pictures=pictures)
    command = headtail("split", str(model), "--at", arguments.at, "--target", arguments.board, "--out", str(out))
    subprocess.run([*command, "--codec", "rans", "--calibration", str(out / "calibration.npz")], check=True)
    return open_artefact(out / "head"), open_artefact(out / "tail")


def build_firmware(head: Artefact, out: Path) -> Path:
    """The firmware with this head; head.h gives its functions the names that firmware/main.c uses."""
    header = next(path for path in head.manifest.files_by_path if path.startswith("src/") and path.endswith("_frame.h")
                  and path != "src/ht_frame.h")  # fmt: skip
    prefix = Path(header).name.removesuffix("_frame.h")
    folder = out / "firmware"
    folder.mkdir(exist_ok=True)
    names = f"#define HEAD(name) {prefix}_##name\n#define HEAD_BYTES(name) {prefix.upper()}_##name\n"
    (folder / "head.h").write_text(f'#include "{prefix}_frame.h"\n{names}')
    variables = (f"HEAD={head.folder.resolve()}", f"OUT={folder.resolve()}")
    subprocess.run(["make", "-s", "-f", str(HERE / "firmware" / "Makefile"), *variables], check=True)
    return folder / "firmware.elf"


def run_device(firmware: Path, broker_url: str, out: Path) -> int:
    """QEMU prints frames, the bridge carries them; like `qemu .. | python bridge.py URL`."""
    qemu = subprocess.Popen(
        [*MACHINE, *SEMIHOSTING, "-kernel", str(firmware.resolve())],
        cwd=out, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        bridge = subprocess.run([sys.executable, str(HERE / "bridge.py"), broker_url], stdin=qemu.stdout, check=False)
        # The bridge ends with the firmware's output, or before it with an error.
        return bridge.returncode or qemu.wait(timeout=60)
    finally:
        assert qemu.stdout is not None
        qemu.stdout.close()
        qemu.kill()
        qemu.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Head on a simulated microcontroller, tail on the host.")
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--at", default="1", help="a row of `headtail split MODEL --list`")
    parser.add_argument("--board", default="stm32f746g-disco")
    parser.add_argument("--broker", help="mqtt://host:port; one is started without it")
    parser.add_argument("--out", type=Path, default=Path("build/mcu_head"))
    parser.add_argument("--count", type=int, default=8, help="pictures that the firmware sees, at most 1000")
    arguments = parser.parse_args(argv)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with np.load(arguments.inputs, allow_pickle=False) as content:
            samples = content[content.files[0]]
        pictures = as_stored(samples, open_cut_source(arguments.model).inputs[0])
        head, tail = make_pair(arguments.model, pictures, arguments)
        folder = arguments.out / "pictures"
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.bin"):
            old.unlink()
        for number, picture in enumerate(pictures[: min(arguments.count, MAX_PICTURES)]):
            (folder / f"{number:03d}.bin").write_bytes(picture.tobytes())
        firmware = build_firmware(head, arguments.out)
        with contextlib.ExitStack() as stack:
            url = arguments.broker or stack.enter_context(start_broker()).url
            children = stack.enter_context(Children(arguments.out / "logs"))
            children.start("tail", headtail("tail", "serve", str(tail.folder), "--broker", url), ready="serving")
            return run_device(firmware, url, arguments.out)
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
