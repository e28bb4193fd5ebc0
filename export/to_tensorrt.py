"""What goes into an artefact for TensorRT: a checked ONNX file, and a command line for boards that build by hand.

The engine itself is never shipped: it is valid for one GPU and one TensorRT build, so the device makes it from the
ONNX file. int8 is the symmetric s8s8 file, fp16 the half-precision file; the types stand in the file and no builder
flag or calibrator takes part. No engine has been built by headtail's tests.
"""

from device_profiles import DeviceProfile
from edge_runtime.backends.trt_boards import LEAST_MAJOR, tensorrt_major
from edge_runtime.manifest import Precision
from export.errors import UnsupportedRouteError
from export.trt_lint import check_tensorrt

COMMAND_FILE = "trtexec.txt"
_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it
_WORKSPACE_MIB = 1024


def tensorrt_files(
    data: bytes, *, board: DeviceProfile, precision: Precision, file_name: str, where: str
) -> dict[str, bytes]:
    """The files of an artefact for a board with TensorRT.

    Args:
        data: The ONNX file: s8s8 for int8, half precision for fp16, plain for fp32.
        board: A board of kind "linux-gpu".
        precision: What the file holds.
        file_name: The artefact's entry.
        where: What the file was made from, for messages.

    Returns:
        The entry, and for boards with TensorRT 8.x the command that builds an engine there by hand.

    Raises:
        UnsupportedRouteError: The board has no TensorRT.
        TensorRtLintError: TensorRT would refuse the file.
    """
    major = tensorrt_major(board)
    if major is None:
        raise UnsupportedRouteError(
            f"Wanted a board with TensorRT, found {board.id} with {', '.join(board.runtimes) or 'no known engine'}. "
            "Pass --engine onnxruntime."
        )
    check_tensorrt(data, precision=precision, where=where)
    files = {file_name: data}
    if major < LEAST_MAJOR:
        files[COMMAND_FILE] = command_text(board, precision=precision, file_name=file_name).encode()
    return files


def trtexec_command(major: int, *, precision: Precision, file_name: str) -> list[str]:
    """The trtexec command line of one major version of TensorRT.

    8.x chooses types by flags (for a file with Q/DQ pairs `--int8` only allows them; nothing is calibrated), 10.x takes
    them from the file when asked to, 11.x always does.
    """
    engine = file_name.rsplit(".", 1)[0] + ".engine"
    command = [_TRTEXEC, f"--onnx={file_name}", f"--saveEngine={engine}", "--timingCacheFile=timings.cache"]
    if major >= 11:
        return command
    if major == 10:
        return [*command, "--stronglyTyped"]
    command.append(f"--workspace={_WORKSPACE_MIB}")
    return command + {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[precision]


def command_text(board: DeviceProfile, *, precision: Precision, file_name: str) -> str:
    """What a user of a TensorRT 8.x board is told."""
    command = " \\\n    ".join(trtexec_command(8, precision=precision, file_name=file_name))
    return (
        f"# {board.name}: TensorRT 8.x. `headtail deploy` refuses this board: its JetPack has no Python 3.10.\n"
        "# Copy the artefact there and build the engine by hand; on TensorRT 8.4 and newer, --workspace=N is spelled\n"
        "# --memPoolSize=workspace:N. TensorRT 8.x documents ONNX operators up to opset 17; this file may use newer ones,\n"
        "# and then it is refused by name. This command has not been run by headtail's tests.\n"
        f"{command}\n"
    )
