"""The C as firmware sees it: clean under every compiler, safe under sanitizers, the same bytes on a Cortex-M4."""

import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

import edge_runtime.entropy
from edge_runtime.entropy import CountOptions, EntropyCodec, count_tables
from edge_runtime.entropy.c_tables import table_flash_bytes, table_source

CSRC = Path(edge_runtime.entropy.__file__).parent.parent / "csrc"
SOURCES = [CSRC / "ht_entropy.c", CSRC / "ht_frame.c"]
FUZZ = Path(__file__).parent / "test_entropy_fuzz.c"
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wsign-conversion", "-Wshadow"]
M4 = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
CUT_ID = bytes(range(8))

START = """
extern unsigned _estack, _sdata, _edata, _sidata, _sbss, _ebss;
extern void initialise_monitor_handles(void); extern int main(void); extern void exit(int);
void _init(void) {} void _fini(void) {}
void reset(void) {
  unsigned *from = &_sidata, *to = &_sdata;
  while (to < &_edata) *to++ = *from++;
  for (to = &_sbss; to < &_ebss; to++) *to = 0;
  *(volatile unsigned *)0xE000ED88 |= 0xFu << 20;
  initialise_monitor_handles();
  exit(main());
}
__attribute__((section(".vectors"), used)) void *const vectors[2] = {&_estack, (void *)reset};
"""

LINKER = """
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 1M  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 64K }
_estack = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(4); } > FLASH
  .ARM.exidx : { *(.ARM.exidx*) . = ALIGN(4); } > FLASH
  _sidata = LOADADDR(.data);
  .data : { _sdata = .; *(.data*) . = ALIGN(4); _edata = .; } > RAM AT > FLASH
  .bss (NOLOAD) : { _sbss = .; *(.bss*) *(COMMON) . = ALIGN(4); _ebss = .; } > RAM
  end = .;
}
"""

# Layers are written from the last to the first, each before the one behind it, then the header before them all: the
# frame is complete in place. The stack is painted to measure what the encoder takes.
MAIN = """
#include <stdio.h>
#include "ht_entropy.h"
#include "ht_frame.h"
#define PAINT 4096u
extern const ht_tables demo; extern const uint8_t demo_base_0[]; extern const uint8_t demo_id[];
static const int8_t latents[] = {%(values)s};
static const uint32_t stops[] = {%(stops)s};
static uint8_t buffer[sizeof latents + 256], scratch[512];
static __attribute__((noinline)) void paint(void) {
  volatile uint8_t area[PAINT]; for (uint32_t i = 0; i < PAINT; i++) area[i] = 0xA5;
}
static __attribute__((noinline)) uint32_t used(void) {
  volatile uint8_t area[PAINT]; uint32_t i = 0; while (i < PAINT && area[i] == 0xA5) i++; return PAINT - i;
}
int main(void) {
  static const uint8_t cut[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  uint32_t lengths[16], count = sizeof stops / sizeof *stops, layer, free_bytes = sizeof buffer, total = 0;
  const ht_frame_tensor tensor = {3, 3, {%(height)d, %(width)d, %(channels)d}};
  ht_frame frame = {HT_CODEC_ENTROPY, cut, demo_id, lengths, &tensor, 0, 1};
  uint8_t *start;
  paint();
  for (layer = count; layer-- > 0;) {
    const uint32_t from = layer ? stops[layer - 1] : 0;
    const ht_layer part = {demo_base_0 + from, stops[layer] - from, %(height)d * %(width)d, 1, %(channels)d, 0x80};
    size_t size;
    if (ht_entropy_blocks(&demo, &part) > sizeof scratch) return 2;
    if (ht_entropy_encode(&demo, &part, (const uint8_t *)latents + from, scratch, buffer, free_bytes, &size)) return 3;
    lengths[layer] = (uint32_t)size; free_bytes -= size; total += size;
  }
  frame.layers = (uint8_t)count;
  start = ht_frame_write(&frame, buffer + free_bytes, free_bytes);
  if (!start) return 4;
  printf("stack %%lu\\n", (unsigned long)used());
  total += (uint32_t)ht_frame_header_bytes(&frame);
  for (uint32_t i = 0; i < total; i++) printf("%%02x", start[i]);
  printf("\\n");
  return 0;
}
"""


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    return done.stdout


def demo_latents(shape=(1, 12, 12, 8)):
    rng = np.random.default_rng(11)
    spread = np.where(np.arange(shape[1])[None, :, None, None] < 6, 0.5, 4.0)
    return np.clip(rng.laplace(0, spread, shape).round(), -128, 127).astype(np.int8)


def host_frame(array, tables):
    """docs/wire.md, written a second time."""
    layers = [bytes(layer) for layer in EntropyCodec(tables, use_c=False).encode([array])]
    payload = b"".join(layers)
    parts = [struct.pack("<I", len(layer)) for layer in layers]
    parts.append(struct.pack("<BB3H", 3, 3, *array.shape[1:]))
    fixed = struct.pack("<2sBB8s4sBBHI", b"HT", 1, 1, CUT_ID, tables.id, len(layers), 1, 0, len(payload))
    rest = b"".join(parts) + payload
    return fixed + struct.pack("<I", zlib.crc32(fixed + bytes(4) + rest)) + rest


@pytest.mark.parametrize(
    "compiler", [["gcc", "-O2"], ["clang", "-O2"], ["g++", "-x", "c++", "-std=c++17"]], ids=lambda c: c[0]
)
def test_the_sources_compile_without_a_warning(compiler, tmp_path):
    strict = [flag for flag in STRICT if not (compiler[0] == "g++" and flag == "-std=c99")]
    for source in SOURCES:
        run(*compiler, *strict, "-c", source, "-o", tmp_path / "out.o")
        if compiler[0] != "g++":  # what a host builds, as C
            run(*compiler, *strict, "-DHT_ENTROPY_WIDE", "-c", source, "-o", tmp_path / "out.o")


@pytest.mark.parametrize(("optimise", "loops"), [("-O1", "-DHT_PORTABLE"), ("-O3", "-DHT_ENTROPY_WIDE")])
def test_no_bytes_lead_the_decoder_astray(optimise, loops, tmp_path):
    program = tmp_path / "fuzz"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-DHT_FUZZ_MAIN"]
    run("gcc", *STRICT[:4], *sanitize, optimise, loops, f"-I{CSRC}", FUZZ, SOURCES[0], "-o", program)
    assert run(program) == "fuzzed\n"


@pytest.mark.mcu
def test_the_sources_compile_for_cortex_m_without_data_or_bss(tmp_path):
    for source in SOURCES:
        run("arm-none-eabi-gcc", *M4, *STRICT, "-O2", "-c", source, "-o", tmp_path / "out.o")
        _, data, bss = run("arm-none-eabi-size", tmp_path / "out.o").splitlines()[1].split()[:3]
        assert (data, bss) == ("0", "0")


@pytest.mark.mcu
@pytest.mark.parametrize("variants", [1, 3])
def test_a_cortex_m4_writes_the_frame_that_the_host_writes(variants, tmp_path):
    array = demo_latents()
    options = CountOptions(channel_axis=1, layers=(2, 8), variants=variants, block=32 if variants > 1 else 0)
    tables = count_tables([demo_latents()[:, :, ::-1]], options)
    values = {
        "values": ",".join(str(value) for value in array.reshape(-1)),
        "stops": "2, 8",
        **dict(zip(("height", "width", "channels"), array.shape[1:], strict=True)),
    }
    (tmp_path / "tables.c").write_text(table_source(tables, "demo"))
    (tmp_path / "main.c").write_text(MAIN % values)
    (tmp_path / "start.c").write_text(START)
    (tmp_path / "board.ld").write_text(LINKER)
    run("arm-none-eabi-gcc", *M4, *STRICT, "-O2", f"-I{CSRC}", "-c", tmp_path / "tables.c", "-o", tmp_path / "t.o")
    image = tmp_path / "image.elf"
    linking = ["--specs=rdimon.specs", "-nostartfiles", "-T", tmp_path / "board.ld"]
    parts = [tmp_path / "start.c", tmp_path / "main.c", tmp_path / "t.o", *SOURCES]
    run("arm-none-eabi-gcc", *M4, "-O2", f"-I{CSRC}", *linking, *parts, "-o", image, "-lc", "-lrdimon")
    machine = ["-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    out = run("qemu-system-arm", *machine, *semihosting, "-kernel", image, stdin=subprocess.DEVNULL, timeout=60)
    stack, frame = out.split("\n")[:2]
    assert bytes.fromhex(frame) == host_frame(array, tables)
    assert 0 < int(stack.split()[1]) <= 1000
    assert table_flash_bytes(tables) < 4000


def test_a_table_name_that_is_no_identifier_is_refused():
    with pytest.raises(ValueError, match="identifier"):
        table_source(count_tables([demo_latents()]), "a-b")
