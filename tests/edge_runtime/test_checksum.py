import zlib

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.checksum import crc32, load_crc32


@given(st.binary(max_size=300), st.integers(1, 100), st.integers(0, 2**32 - 1), st.integers(0, 63))
def test_the_result_is_that_of_zlib_at_every_size_start_and_alignment(piece, repeat, start, skip):
    data = memoryview(piece * repeat)[skip:]
    assert crc32(data, start) == zlib.crc32(data, start)


def test_without_the_library_zlib_is_used():
    assert load_crc32("libnothing.so.0") is zlib.crc32
    assert load_crc32("libc.so.6") is zlib.crc32
