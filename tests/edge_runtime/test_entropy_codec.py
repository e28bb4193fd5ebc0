"""The coder's laws: what goes in comes out, both implementations write the same bytes, no bytes do harm."""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_runtime.entropy
from edge_runtime.entropy import (
    CountOptions,
    EntropyCodec,
    EntropyError,
    count_tables,
    decode_layers,
    encode_layers,
    join_tables,
)
from edge_runtime.entropy import native as native_module
from edge_runtime.entropy.errors import (
    EntropyCorruptError,
    EntropyShapeError,
    EntropyTrailingError,
    EntropyTruncatedError,
)
from edge_runtime.entropy.native import NativeCoder
from edge_runtime.entropy.tables import SCALE, LayerPlan, Table, TableSet, TensorPlan

CSRC = Path(edge_runtime.entropy.__file__).parent.parent / "csrc"
GOLDEN = Path(__file__).parent.parent / "golden" / "entropy"


@dataclass(frozen=True)
class Head:
    dtype: str
    shape: tuple[int, ...]


def build(folder, *flags):
    library = folder / "coder.so"
    sources = [str(CSRC / "ht_entropy.c"), str(CSRC / "ht_frame.c")]
    subprocess.run(["cc", "-std=c99", "-O2", "-fPIC", "-shared", *flags, *sources, "-o", str(library)], check=True)
    return NativeCoder(library)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The C coder of this tree as it is built for a host."""
    return build(tmp_path_factory.mktemp("csrc"), "-DHT_ENTROPY_WIDE")


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """The same without AVX-512; test_entropy_fuzz.c compares the two on damaged layers too."""
    return build(tmp_path_factory.mktemp("portable"))


def latents(seed, shape, dtype="int8", spread=2.0):
    values = np.random.default_rng(seed).laplace(0, spread, shape).round()
    return np.clip(values, -128, 127).astype(np.int8).view(dtype)


def heads(arrays):
    return [Head(array.dtype.name, array.shape) for array in arrays]


def both(tables, native):
    return EntropyCodec(tables, coder=native), EntropyCodec(tables, use_c=False)


def outcome(codec, wanted, layer):
    """The decoded bytes, or that the layer was refused."""
    try:
        return codec.decode(wanted, [layer])[0].tobytes()
    except (EntropyTruncatedError, EntropyTrailingError, EntropyCorruptError):
        return None


SHAPES = [
    (1, 1),
    (1, 7),
    (1, 3, 5),
    (1, 1, 1, 1),
    (1, 2, 40, 40),
    (1, 5, 13, 31),
    (1, 24, 28, 28),
    (1, 130, 6, 6),
    (1, 2, 33, 200),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("variants", [1, 3])
def test_c_and_numpy_write_the_same_bytes_and_both_read_them(native, shape, dtype, axis, variants):
    seen = latents(1, shape, dtype)
    options = CountOptions(channel_axis=axis, variants=variants, block=64 if variants > 1 else 0)
    tables = count_tables([seen], options)
    wide = latents(2, shape, dtype, spread=6.0)  # with escapes
    for array in (seen, wide, np.zeros_like(seen), np.full_like(seen, 127), latents(3, shape, dtype, spread=90)):
        in_c, in_numpy = both(tables, native)
        layers = in_c.encode([array])
        assert [bytes(layer) for layer in layers] == [bytes(layer) for layer in in_numpy.encode([array])]
        assert len(layers[0]) <= array.size + 1
        for codec in (in_c, in_numpy):
            (decoded,) = codec.decode(heads([array]), layers)
            assert decoded.dtype == array.dtype
            assert np.array_equal(decoded, array)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_and_equal_bytes_for_any_tables_and_values(native, data):
    channels, positions = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 1500))
    seed = data.draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(data.draw(st.integers(1, 3))):
        count = int(rng.integers(1, 256))
        cuts = np.sort(rng.choice(np.arange(1, SCALE), count, replace=False))
        frequencies = np.diff(np.concatenate([[0], cuts, [SCALE]]))
        tables.append(Table(int(rng.integers(0, 257 - count)), tuple(frequencies.tolist())))
    base = tuple(rng.integers(0, len(tables), channels).tolist())
    plan = TableSet((TensorPlan(base),), (LayerPlan(0, 0, channels),), tuple(tables))
    # Draw from the tables themselves, so that layers are coded and not only stored.
    codes = np.stack(
        [
            (tables[t].low + rng.choice(tables[t].count + 1, positions, p=np.array(tables[t].frequencies) / SCALE))
            % 256
            for t in base
        ]
    ).astype(np.uint8)[None]
    in_c, in_numpy = both(plan, native)
    layers = in_c.encode([codes])
    assert layers == in_numpy.encode([codes])
    assert np.array_equal(in_c.decode(heads([codes]), layers)[0], codes)
    assert np.array_equal(in_numpy.decode(heads([codes]), layers)[0], codes)


@pytest.mark.parametrize("use_c", [True, False])
def test_any_prefix_of_layers_decodes_and_the_rest_holds_the_zero_point(native, use_c):
    array = latents(4, (1, 8, 10, 10))
    tables = count_tables([array], CountOptions(layers=(1, 3, 8), fill=-7))
    codec = EntropyCodec(tables, coder=native) if use_c else EntropyCodec(tables, use_c=False)
    layers = codec.encode([array])
    for known, stop in enumerate((1, 3, 8), 1):
        (decoded,) = codec.decode(heads([array]), layers[:known])
        assert np.array_equal(decoded[:, :stop], array[:, :stop])
        assert (decoded[:, stop:] == -7).all()


def test_two_tensors_travel_in_one_set_of_layers(native):
    arrays = [latents(1, (1, 4, 6, 6)), latents(2, (1, 3, 3, 5), "uint8")]
    plan = join_tables([count_tables([arrays[0]]), count_tables([arrays[1]], CountOptions(channel_axis=1))])
    layers = EntropyCodec(plan, coder=native).encode(arrays)
    assert layers == EntropyCodec(plan, use_c=False).encode(arrays)
    for found, wanted in zip(decode_layers(heads(arrays), layers, plan), arrays, strict=True):
        assert np.array_equal(found, wanted)


def test_bytes_are_within_half_a_percent_of_the_cross_entropy_and_the_lanes(native):
    array = np.concatenate([latents(c, (1, 1, 55, 55), spread=0.2 + 0.12 * c) for c in range(24)], axis=1)
    tables = count_tables([array])
    entropy = 0.0
    for row in array.reshape(24, -1):
        counts = np.bincount(row.view(np.uint8))
        counts = counts[counts > 0]
        entropy -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    found = len(EntropyCodec(tables, coder=native).encode([array])[0])
    assert found <= entropy * 1.005 + 1 + 4 * 16


def test_blocks_pay_where_the_statistics_change_within_a_channel(native):
    quiet, loud = latents(1, (1, 8, 32, 32), spread=0.2), latents(2, (1, 8, 32, 32), spread=8)
    array = np.where(np.arange(32)[None, None, :, None] < 20, quiet, loud)
    one = len(encode_layers([array], count_tables([array]))[0])
    four = len(encode_layers([array], count_tables([array], CountOptions(variants=4, block=64)))[0])
    assert four < 0.9 * one


def test_the_loss_of_range_costs_at_most_one_byte(native):
    array = latents(9, (1, 4, 64, 64), spread=200)
    tables = count_tables([latents(1, (1, 4, 64, 64), spread=0.3)])
    assert len(EntropyCodec(tables, coder=native).encode([array])[0]) == array.size + 1


@pytest.mark.parametrize("use_c", [True, False])
def test_truncation_and_trailing_bytes_are_named(native, use_c):
    array = latents(1, (1, 4, 30, 30))
    tables = count_tables([array])
    codec = EntropyCodec(tables, coder=native) if use_c else EntropyCodec(tables, use_c=False)
    (layer,) = codec.encode([array])
    for cut in (0, 1, 5, len(layer) // 2, len(layer) - 2, len(layer) - 1):
        with pytest.raises((EntropyTruncatedError, EntropyCorruptError)):
            codec.decode(heads([array]), [layer[:cut]])
    for tail in (b"\0", b"\0\0", bytes(100)):
        with pytest.raises(EntropyTrailingError):
            codec.decode(heads([array]), [bytes(layer) + tail])
    with pytest.raises(EntropyCorruptError):
        codec.decode(heads([array]), [b"\x07" + bytes(layer[1:])])


@pytest.mark.parametrize("variants", [1, 3])
def test_damage_never_goes_unnoticed_by_more_than_chance(native, variants):
    # The frame's CRC32 is the guard; the lanes' end states are a second one.
    array = latents(1, (1, 8, 20, 20))
    tables = count_tables([array], CountOptions(variants=variants, block=32 if variants > 1 else 0))
    codec = EntropyCodec(tables, coder=native)
    (layer,) = codec.encode([array])
    rng = np.random.default_rng(0)
    unseen = 0
    for _ in range(500):
        damaged = bytearray(layer)
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(EntropyError):
            unseen += not np.array_equal(codec.decode(heads([array]), [bytes(damaged)])[0], array)
    assert unseen <= 2


@given(data=st.binary(max_size=600), mode=st.integers(0, 3), variants=st.sampled_from([1, 2]))
@settings(max_examples=200, deadline=None)
def test_c_and_numpy_agree_on_any_bytes(native, data, mode, variants):
    seen = latents(1, (1, 2, 70))
    tables = count_tables([seen], CountOptions(variants=variants, block=32 if variants > 1 else 0))
    in_c, in_numpy = (outcome(codec, heads([seen]), bytes([mode]) + data) for codec in both(tables, native))
    assert in_c == in_numpy


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("int16", (1, 4, 3, 3)), ("int8", (1, 5, 3, 3)), ("int8", (2, 4, 3, 3)), ("int8", (1, 4, 0)), ("int8", (4,))],
)
def test_tensors_of_another_cut_are_refused_before_decoding(dtype, shape):
    tables = count_tables([latents(1, (1, 4, 3, 3))])
    with pytest.raises(EntropyShapeError):
        decode_layers([Head(dtype, shape)], [b"\1"], tables)
    with pytest.raises(EntropyShapeError):
        encode_layers([np.zeros(shape, dtype)], tables)


def test_no_layers_too_many_layers_and_too_many_tensors_are_refused():
    array = latents(1, (1, 4, 3, 3))
    tables = count_tables([array])
    (layer,) = encode_layers([array], tables)
    for found_heads, layers in ((heads([array]), []), (heads([array]), [layer] * 2), (heads([array] * 2), [layer])):
        with pytest.raises(EntropyShapeError):
            decode_layers(found_heads, layers, tables)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.bin")), ids=lambda path: path.stem)
def test_golden_layers_keep_their_bytes(native, portable, path):
    tables = edge_runtime.entropy.parse_tables(path.with_suffix(".tables").read_bytes())
    array = np.load(path.with_suffix(".npy"), allow_pickle=False)
    wanted = path.read_bytes()
    for codec in (*both(tables, native), EntropyCodec(tables, coder=portable)):
        layers = codec.encode([array])
        assert b"".join(layers) == wanted
        assert np.array_equal(codec.decode(heads([array]), layers)[0], array)


def test_there_are_golden_layers():
    assert len(list(GOLDEN.glob("*.bin"))) >= 6


def test_without_a_library_numpy_does_the_same(native, monkeypatch, tmp_path):
    array = latents(1, (1, 4, 9, 9))
    tables = count_tables([array])
    monkeypatch.setattr(native_module, "LIBRARY", tmp_path / "none.so")
    native_module.built_coder.cache_clear()
    try:
        assert EntropyCodec(tables).encode([array]) == EntropyCodec(tables, coder=native).encode([array])
    finally:
        native_module.built_coder.cache_clear()


def test_a_broken_library_is_an_os_error(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(OSError, match="broken"):
        NativeCoder(broken)
