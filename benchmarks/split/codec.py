"""The entropy coder against constriction, zlib and the empirical entropy: bytes, and symbols per second of one core.

Case: 24 channels of Laplace noise, scales 0.12 to 3.5 (geometric), 28 x 28 and 55 x 55 positions, int8. Tables are
counted on the case itself, for every coder that takes any; rates are of process CPU time, calls through Python
included, coders in turn so that whatever else the machine does hits all of them. One symbol is one byte of input.
"""

import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import ROOT
from edge_runtime.entropy import CountOptions, EntropyCodec, TableSet, count_tables
from edge_runtime.entropy.c_tables import table_flash_bytes
from edge_runtime.entropy.native import NativeCoder

CHANNELS = 24
SIDES = (28, 55)
ROUNDS = 15
SECONDS = 0.05  # of each coder in each round

# id, coder, direction (encode or decode), bar in million symbols a second
SPEED_BARS = (
    ("codec_enc", "C", "encode", 100),
    ("codec_dec", "C", "decode", 60),
    ("codec_np.enc", "NumPy", "encode", 1.5),
    ("codec_np.dec", "NumPy", "decode", 1.5),
)
OVER_BARS = {28: 1.5, 55: 0.7}  # percent


@dataclass(frozen=True)
class Head:
    """What a frame says of the latent."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Coder:
    """One coder, ready to run on one case."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    size: Callable[[Any], int]


def case(side: int) -> np.ndarray:
    """int8 latents (1, 24, side, side)."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.12, 3.5, CHANNELS)[:, None, None]
    values = rng.laplace(0, spread, (CHANNELS, side, side)).round()
    return np.clip(values, -128, 127).astype(np.int8)[None]


def entropy_bytes(latents: np.ndarray) -> float:
    """Empirical entropy of the channels, each by itself."""
    total = 0.0
    for row in latents.reshape(latents.shape[1], -1):
        counts = np.unique(row, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total / 8


def native_coder() -> NativeCoder:
    """The coder of this tree, built as hatch_build.py does: a library that was built with the package may be older."""
    folder = Path(tempfile.mkdtemp(prefix="codec-"))
    sources = [str(path) for path in sorted((ROOT / "edge_runtime" / "csrc").glob("*.c"))]
    command = [
        "cc",
        "-std=c99",
        "-O3",
        "-fPIC",
        "-shared",
        "-DHT_ENTROPY_WIDE",
        *sources,
        "-o",
        str(folder / "coder.so"),
    ]
    subprocess.run(command, check=True)
    return NativeCoder(folder / "coder.so")


def coders(latents: np.ndarray, tables: TableSet) -> list[Coder]:
    """Ours twice, then the peers that are installed."""
    head = [Head("int8", latents.shape)]
    ours = {"C": EntropyCodec(tables, coder=native_coder()), "NumPy": EntropyCodec(tables, use_c=False)}
    found = [_ours(name, codec, latents, head) for name, codec in ours.items()]
    raw = latents.tobytes()
    found.append(Coder("zlib", lambda: zlib.compress(raw, 6), zlib.decompress, len))
    if constriction_version() is not None:
        found.append(_constriction(latents, tables))
    return found


def constriction_version() -> str | None:
    """None when the peer is not installed."""
    try:
        return version("constriction")
    except PackageNotFoundError:
        return None


def _ours(name: str, codec: EntropyCodec, latents: np.ndarray, head: list[Head]) -> Coder:
    return Coder(
        name,
        lambda: codec.encode([latents]),
        lambda layers: codec.decode(head, layers)[0],
        lambda layers: sum(len(layer) for layer in layers),
    )


def _constriction(latents: np.ndarray, tables: TableSet) -> Coder:
    """Its ANS coder with our frequencies, one categorical model for each channel, as its documentation advises."""
    import constriction

    stack, model = constriction.stream.stack, constriction.stream.model
    lows = [table.low for table in tables.tables]
    models = [model.Categorical(np.array(t.frequencies, np.float32) / 4096, perfect=False) for t in tables.tables]
    codes = latents.reshape(CHANNELS, -1).view(np.uint8) ^ 0x80
    positions = codes.shape[1]

    def encode() -> Any:
        coder = stack.AnsCoder()
        for channel in reversed(range(CHANNELS)):
            coder.encode_reverse((codes[channel].astype(np.int32) - lows[channel]), models[channel])
        return coder.get_compressed()

    def decode(words: Any) -> np.ndarray:
        coder = stack.AnsCoder(words)
        rows = [coder.decode(models[c], positions) + lows[c] for c in range(CHANNELS)]
        return (np.stack(rows).astype(np.uint8) ^ 0x80).view(np.int8).reshape(latents.shape)

    return Coder("constriction", encode, decode, lambda words: int(words.nbytes))


def rates(found: list[Coder], latents: np.ndarray) -> dict[tuple[str, str], float]:
    """Million symbols per second of CPU time, median of rounds, for each coder and direction."""
    samples: dict[tuple[str, str], list[float]] = {}
    coded = {coder.name: coder.encode() for coder in found}
    for coder in found:
        decoded = coder.decode(coded[coder.name])
        got = decoded if isinstance(decoded, bytes) else np.asarray(decoded).tobytes()
        if got != latents.tobytes():
            raise AssertionError(f"{coder.name} does not give back what it was given.")
    for _ in range(ROUNDS):
        for coder in found:
            for direction in ("encode", "decode"):
                call = coder.encode if direction == "encode" else _decoding(coder, coded[coder.name])
                samples.setdefault((coder.name, direction), []).append(latents.size / _seconds(call) / 1e6)
    return {key: statistics.median(values) for key, values in samples.items()}


def _decoding(coder: Coder, coded: Any) -> Callable[[], Any]:
    return lambda: coder.decode(coded)


def _seconds(call: Callable[[], Any]) -> float:
    start, calls = time.process_time(), 0
    while (spent := time.process_time() - start) < SECONDS or not calls:
        call()
        calls += 1
    return spent / calls


def size_rows(side: int, found: list[Coder], entropy: float) -> list[dict[str, Any]]:
    """Bytes over the entropy, ours with its bar and the peers for comparison."""
    result = []
    symbols = CHANNELS * side * side
    for coder in found:
        over = 100 * (coder.size(coder.encode()) / entropy - 1)
        if coder.name == "NumPy":
            continue  # the same bytes as C, which the tests prove
        ours = coder.name == "C"
        result.append(
            {
                "id": f"codec_over.{symbols}" if ours else f"codec_over.{symbols}.{coder.name}",
                "what": f"bytes over the empirical entropy of {entropy:.0f} B, {symbols} symbols, {coder.name}",
                "value": round(over, 3),
                "unit": "%",
                "direction": "<=" if ours else "info",
                "bar": OVER_BARS[side] if ours else None,
            }
        )
    return result


def speed_rows(measured: dict[tuple[str, str], float], symbols: int) -> list[dict[str, Any]]:
    """Ours with bars, then the peers of the same run."""
    peer = "constriction" if constriction_version() else "zlib"
    peer_version = constriction_version() or zlib.ZLIB_RUNTIME_VERSION
    result = []
    for row_id, coder, direction, bar in SPEED_BARS:
        against = measured[peer, direction]
        result.append(
            {
                "id": row_id,
                "what": f"{coder} {direction}, {symbols} symbols, one core ({peer}: {against:.1f} in the same run)",
                "value": round(measured[coder, direction], 2),
                "unit": "Msymbols/s",
                "direction": ">=",
                "bar": bar,
                "peer": peer,
                "peer_version": peer_version,
            }
        )
    for (coder, direction), value in measured.items():
        if coder in ("zlib", "constriction"):
            what = f"{coder} {direction}, {symbols} symbols, one core"
            row = {"id": f"codec_peer.{coder}.{direction}", "what": what, "value": round(value, 2)}
            result.append({**row, "unit": "Msymbols/s", "direction": "info"})
    return result


def table_rows(latents: np.ndarray) -> list[dict[str, Any]]:
    """What the tables of the case take in an artefact and in a microcontroller's flash."""
    result = []
    for name, options in (("channels", CountOptions()), ("blocks", CountOptions(variants=8, block=64))):
        tables = count_tables([latents], options)
        for kind, value in (("artefact", len(tables.data)), ("flash", table_flash_bytes(tables))):
            what = f"tables of the {latents.size}-symbol case, {name}, {kind}"
            row = {"id": f"codec_tables.{name}.{kind}", "what": what, "value": value}
            result.append({**row, "unit": "B", "direction": "info"})
    return result


def rows() -> list[dict[str, Any]]:
    """All figures of the codec."""
    result = []
    for side in SIDES:
        latents = case(side)
        found = coders(latents, count_tables([latents]))
        result += size_rows(side, found, entropy_bytes(latents))
        if side == SIDES[0]:
            result += speed_rows(rates(found, latents), latents.size)
            result += table_rows(latents)
    return result
