import hashlib
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.blocks import Block
from edge_runtime.messages import BLOCK_BYTES, DeployStart
from edge_runtime.transfer import IncomingFile, TransferError, block_count, block_length, missing_blocks

BOOT = "0" * 16


def announced(data, **changes):
    values = {"artefact": "a" * 64, "zip_sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return DeployStart(boot=BOOT, transfer=BOOT, **{**values, **changes})


def blocks(data):
    return [Block(i, data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]) for i in range(block_count(len(data)))]


@given(st.integers(1, 10 * BLOCK_BYTES))
def test_blocks_cover_the_file_exactly(size):
    count = block_count(size)
    assert sum(block_length(size, index) for index in range(count)) == size
    assert all(1 <= block_length(size, index) <= BLOCK_BYTES for index in range(count))


@given(st.sets(st.integers(0, 99)), st.integers(1, 100))
def test_the_bitmap_says_what_is_missing(have, count):
    bitmap = bytearray(13)
    for index in have:
        bitmap[index // 8] |= 1 << index % 8
    assert missing_blocks(bytes(bitmap), count) == [index for index in range(count) if index not in have]
    assert missing_blocks(b"", count) == list(range(count))


@pytest.mark.parametrize("stop_after", range(5))
def test_a_transfer_goes_on_after_an_interruption_at_every_block(tmp_path, stop_after):
    data = bytes(range(256)) * 1100  # four whole blocks and a short one
    order = blocks(data)[::-1]
    first = IncomingFile(tmp_path, announced(data))
    for block in order[:stop_after]:
        assert first.add(block)
        assert not first.add(block), "a block that comes twice changes nothing"
    second = IncomingFile(tmp_path, announced(data))
    assert missing_blocks(second.have, 5) == sorted(block.index for block in order[stop_after:])
    for block in order[stop_after:]:
        second.add(block)
    assert second.complete
    assert second.finish().read_bytes() == data
    assert [path.suffix for path in tmp_path.iterdir()] == [".zip"]


def test_a_file_that_differs_from_what_was_announced_is_thrown_away(tmp_path):
    data = bytes(100_000)
    incoming = IncomingFile(tmp_path, announced(data, zip_sha256="f" * 64))
    with pytest.raises(TransferError, match="2 missing"):
        incoming.finish()
    for block in blocks(data):
        incoming.add(block)
    with pytest.raises(TransferError, match="sha256"):
        incoming.finish()
    assert list(tmp_path.iterdir()) == []


def test_blocks_outside_of_the_file_and_no_room_are_named(tmp_path):
    incoming = IncomingFile(tmp_path, announced(bytes(100)))
    for block in (Block(1, b"x"), Block(0, b"x"), Block(0, bytes(101))):
        with pytest.raises(TransferError, match="100 B"):
            incoming.add(block)
    import shutil

    if shutil.disk_usage(tmp_path).free < 4 << 30:
        with pytest.raises(TransferError, match="room"):
            IncomingFile(tmp_path, announced(b"x", size=2 << 30))


def test_an_earlier_transfer_is_removed(tmp_path):
    IncomingFile(tmp_path, announced(bytes(100)))
    IncomingFile(tmp_path, announced(bytes(200)))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [200]


def test_a_resumed_transfer_asks_no_room_for_what_it_holds_already(tmp_path, monkeypatch):
    data = bytes(range(256)) * 40_000  # 10 MB
    room = 2 * len(data) + (16 << 20)

    def usage(_):
        taken = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
        return shutil._ntuple_diskusage(room, taken, room - taken)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    first = IncomingFile(tmp_path, announced(data))
    for block in blocks(data)[:-1]:
        first.add(block)
    second = IncomingFile(tmp_path, announced(data))
    assert missing_blocks(second.have, second.count) == [second.count - 1]
