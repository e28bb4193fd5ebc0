"""The export folder: it builds as its README says, as C and as C++, and proves itself on simulated boards."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_profiles.errors import FitError
from export.mcu.errors import ProofError, ToolchainError
from export.mcu.machines import MACHINES
from export.mcu.qemu import prove
from export.mcu.report import McuReport
from export.mcu.to_c import McuOptions, build_export, export_mcu
from split.patch import InputMode

BOARDS = sorted(MACHINES)


@dataclass(frozen=True)
class Board:
    id: str = "test-board"
    sram_bytes: int | None = 64 * 1024
    flash_bytes: int | None = 256 * 1024


@pytest.fixture(scope="session")
def vision_model(tflite_builder) -> bytes:
    """A small network with every kind of segment: stem, depthwise, residual, squeeze-and-excite, dense, softmax."""
    net = tflite_builder(11)
    source = net.activation((1, 20, 18, 3), 0.04, -5, name="camera frame */ #include")
    tip = net.conv(source, 8, (3, 3), (2, 2), activation=1)
    tip = net.binary("ADD", tip, net.conv(net.depthwise(tip, activation=3), 8, (1, 1)))
    gate = net.unary("LOGISTIC", net.conv(net.mean(tip, [1, 2]), 8, (1, 1)))
    tip = net.depthwise(net.binary("MUL", tip, gate), 2, (5, 5), (2, 2), padding=1)
    tip = net.mean(tip, [1, 2])
    return net.finish([source], [net.unary("SOFTMAX", net.dense(tip, 5)), tip])


@pytest.fixture(scope="session")
def folders(vision_model, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for mode in InputMode:
        found[mode.value] = tmp_path_factory.mktemp("export") / f"vision-{mode.value}"
        export_mcu(vision_model, Board(), found[mode.value], McuOptions(name="Vision Net!", input_mode=mode))
    return found


@pytest.mark.mcu
@pytest.mark.parametrize("machine", BOARDS)
def test_the_folder_is_equal_on_every_simulated_board(folders, machine):
    run = prove(folders["overwritten"], machine=machine)
    assert run.differing == 0
    assert len(run.cases) == 5
    assert 0 < run.stack_bytes < 1024
    assert 10_000 < run.instructions < 4_000_000
    assert 1_000 < run.flash_bytes < 60_000


@pytest.mark.mcu
@pytest.mark.parametrize("mode", [mode.value for mode in InputMode])
def test_every_input_mode_is_equal_on_a_board_and_here(folders, mode):
    assert prove(folders[mode], machine="mps2-an386").differing == 0
    assert prove(folders[mode]).differing == 0


@pytest.mark.mcu
def test_two_runs_count_the_same_instructions(folders):
    first, second = (prove(folders["pulled"], machine="mps2-an386") for _ in range(2))
    assert first == second


@pytest.mark.mcu
def test_make_qemu_prints_hashes_bytes_and_instructions(folders, tmp_path):
    copy = tmp_path / "vision"
    shutil.copytree(folders["resident"], copy)
    before = {path.relative_to(copy) for path in copy.rglob("*")}
    done = subprocess.run(["make", "-C", str(copy), "qemu"], capture_output=True, text=True, check=True)
    assert re.search(
        r"^case 0: hash ([0-9a-f]{8}), TensorFlow Lite Micro \1, differing bytes 0$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^arena \d+ stack \d+ instructions \d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^flash \d+$", done.stdout, re.MULTILINE)
    assert {path.relative_to(copy) for path in copy.rglob("*")} == before  # the artefact's files stay as they were


@pytest.mark.mcu
def test_a_changed_golden_byte_is_noticed(folders, tmp_path):
    copy = tmp_path / "vision"
    shutil.copytree(folders["resident"], copy)
    path = copy / "golden" / "01_output_0.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    run = prove(copy)
    assert [case.differing for case in run.cases] == [0, 1, 0, 0, 0]
    path.write_bytes(bytes(data) + b"x")
    shutil.rmtree(copy / "golden")
    with pytest.raises(ProofError, match="ran no case"):
        prove(copy)


@pytest.mark.mcu
def test_the_linker_enforces_the_boards_ram(vision_model, tmp_path):
    """The planner is told of a larger board than the linker script: the script must say no."""
    export = build_export(vision_model, Board(), McuOptions(name="vision"))
    arena = export.report.arena_bytes
    folder = tmp_path / "vision"
    for relative, content in export.files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    script = folder / "proof" / "mps2-an386.ld"
    script.write_text(script.read_text().replace(f"LENGTH = {64 * 1024}\n", f"LENGTH = {arena}\n"))
    with pytest.raises(ProofError, match=r"left for the stack|will not fit|overflowed"):
        prove(folder, machine="mps2-an386")


def test_too_small_a_board_is_refused_with_the_missing_bytes(vision_model):
    with pytest.raises(FitError, match=r"\d+"):
        build_export(vision_model, Board(sram_bytes=1500), McuOptions(name="vision"))
    with pytest.raises(FitError, match=r"of flash but .* over"):
        build_export(vision_model, Board(flash_bytes=4096), McuOptions(name="vision"))
    with pytest.raises(FitError, match=r"\d+"):
        build_export(vision_model, Board(), McuOptions(name="vision", max_ram_bytes=0))  # a limit, not none
    with pytest.raises(FitError, match="on record"):
        build_export(vision_model, Board(sram_bytes=None), McuOptions(name="vision"))


def test_an_unknown_machine_is_named(folders):
    with pytest.raises(ToolchainError, match="mps2-an386"):
        prove(folders["resident"], machine="mps9")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_all_c_is_free_of_warnings(folders, compiler, standard, tmp_path):
    sources = sorted(str(path) for path in (folders["pulled"] / "src").glob("*.c"))
    flags = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-O2", f"-std={standard}"]
    subprocess.run([compiler, *flags, "-c", *sources], check=True, cwd=tmp_path)


@pytest.mark.parametrize("compiler", ["g++", "clang++", "arm-none-eabi-g++"])
def test_the_header_serves_cxx17(folders, compiler, tmp_path):
    main = tmp_path / "main.cpp"
    main.write_text(
        '#include "ht_vision_net.h"\n'
        "int main() { *ht_vision_net_input(ht_vision_net_arena) = 1; return ht_vision_net_run(ht_vision_net_arena); }\n"
    )
    include = f"-I{folders['resident'] / 'src'}"
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", include, "-c", main.name],
        check=True,
        cwd=tmp_path,
    )


@pytest.mark.mcu
@pytest.mark.parametrize("language", ["C", "CXX"])
def test_cmake_builds_it_for_arm(folders, language, tmp_path):
    suffix = {"C": "c", "CXX": "cpp"}[language]
    (tmp_path / f"main.{suffix}").write_text(
        '#include "ht_vision_net.h"\nint main(void) { return ht_vision_net_run(ht_vision_net_arena); }\n'
    )
    (tmp_path / "CMakeLists.txt").write_text(
        f"""cmake_minimum_required(VERSION 3.16)
project(firmware C CXX)
set(CMAKE_CXX_STANDARD 17)
add_subdirectory({folders["resident"]} vision)
add_executable(firmware main.{suffix})
target_link_libraries(firmware ht_vision_net)
"""
    )
    configure = [
        "cmake", "-S", ".", "-B", "out", "-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_C_COMPILER=arm-none-eabi-gcc",
        "-DCMAKE_CXX_COMPILER=arm-none-eabi-g++", "-DCMAKE_C_FLAGS=-mcpu=cortex-m4 -mthumb",
        "-DCMAKE_CXX_FLAGS=-mcpu=cortex-m4 -mthumb", "-DCMAKE_EXE_LINKER_FLAGS=--specs=nosys.specs",
        "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY",
    ]  # fmt: skip
    subprocess.run(configure, check=True, cwd=tmp_path, capture_output=True)
    built = subprocess.run(["cmake", "--build", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "out" / "firmware").is_file()


def test_two_networks_live_in_one_program(vision_model, tmp_path):
    sources = []
    for name in ("first", "second"):
        export = build_export(vision_model, Board(), McuOptions(name=name, input_mode=InputMode.EXTERNAL))
        for relative, content in export.files.items():
            if relative.startswith("src/"):
                (tmp_path / relative[4:]).write_bytes(content)
        golden = np.frombuffer(export.files["golden/00_input.bin"], np.int8)
    values = ",".join(map(str, golden))
    (tmp_path / "main.c").write_text(
        f"""#include <string.h>
#include "ht_first.h"
#include "ht_second.h"
static const int8_t frame[] = {{{values}}};
int main(void) {{
  int status = ht_first_run(ht_first_arena, frame) | ht_second_run(ht_second_arena, frame);
  const int8_t *first = ht_first_output_0(ht_first_arena), *second = ht_second_output_0(ht_second_arena);
  return status | memcmp(first, second, HT_FIRST_OUTPUT_0_BYTES);
}}
"""
    )
    sources = sorted(path.name for path in tmp_path.glob("*.c"))
    subprocess.run(["cc", "-std=c99", "-O1", *sources, "-o", "both"], check=True, cwd=tmp_path)
    subprocess.run([tmp_path / "both"], check=True)


def test_a_stopped_camera_stops_the_run_with_its_number(folders, tmp_path):
    (tmp_path / "main.c").write_text(
        """#include "ht_vision_net.h"
static int row(void *user, int32_t y, int8_t *to) { *to = 0; ++*(int *)user; return y == 3 ? 42 : 0; }
int main(void) { int rows = 0; return ht_vision_net_run(ht_vision_net_arena, row, &rows) == 42 && rows == 4 ? 0 : 1; }
"""
    )
    sources = sorted(str(path) for path in (folders["pulled"] / "src").glob("*.c"))
    include = f"-I{folders['pulled'] / 'src'}"
    subprocess.run(["cc", "-std=c99", include, "main.c", *sources, "-o", "stop"], check=True, cwd=tmp_path)
    subprocess.run([tmp_path / "stop"], check=True)


def test_equal_exports_have_equal_bytes(vision_model):
    first, second = (build_export(vision_model, Board(), McuOptions(name="vision")).files for _ in range(2))
    assert first == second


def test_the_report_says_what_was_planned(folders):
    report = msgspec.json.decode((folders["pulled"] / "report.json").read_bytes(), type=McuReport)
    assert report.function == "ht_vision_net_run"
    assert report.input_mode == "pulled"
    assert report.arena_bytes >= report.live_bound_bytes > 0
    assert report.front[0].arena_bytes <= report.arena_bytes
    assert sum(len(segment.operators) for segment in report.segments) == sum(report.operators.values())
    assert (folders["pulled"] / "memory.svg").read_bytes().startswith(b"<?xml")


def test_names_from_the_file_can_not_leave_their_comment(folders):
    header = (folders["resident"] / "src" / "ht_vision_net.h").read_text()
    assert "camera frame __ #include" in header
    assert header.count("*/") == header.count("/*")
