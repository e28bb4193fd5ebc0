"""The model-update example: whatever is cut or forged, the simulated device runs a model that verifies."""

import ctypes
import hashlib
import re
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.mcu

PAGE, SLOT_A, SLOT_B = 1024, 4 * 1024, 20 * 1024  # as in flash.h
COUNTER, SIGNER, HASH_B, SIGNATURE, MANIFEST_BYTES = 8, 32, 96, 128, 192  # offsets in a package
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
SWEEP = re.compile(
    r"^(.+): operations (\d+), cut points (\d+), then booted none (\d+) old (\d+) new (\d+), failures (\d+)$", re.M
)


def flipped(data: bytes, offset: int, bits: int = 1) -> bytes:
    return data[:offset] + bytes([data[offset] ^ bits]) + data[offset + 1 :]


def test_a_verified_model_boots_after_a_power_cut_in_every_flash_operation(empty_device, kit):
    for counter, model in ((1, "old"), (2, "new"), (3, "old")):
        (empty_device.folder / f"package{counter}.bin").write_bytes(kit.package(model, counter))
    (empty_device.folder / "odd.bin").write_bytes(kit.outputs["old"])
    (empty_device.folder / "even.bin").write_bytes(kit.outputs["new"])
    printed = empty_device.power_up(elf="sweep")
    assert printed.endswith("always a verified model\n")
    sweeps = [(name, *map(int, numbers)) for name, *numbers in SWEEP.findall(printed)]
    assert len(sweeps) == 3
    for name, operations, points, booted_none, booted_old, booted_new, failures in sweeps:
        assert failures == 0
        assert operations > 150
        assert points == operations * (3 if name == "slot A to B" else 1) + 2 * 32 + 1  # the switch: more often
        assert booted_none + booted_old + booted_new == points
        assert booted_new >= 1
        assert booted_none == 0 or name == "empty device to slot A"


@pytest.mark.parametrize("cut", [(0, 1), (3, 2), (120, 1), (195, 2), (198, 1)])
def test_an_update_cut_by_a_real_restart_is_completed_by_the_next(device, kit, cut):
    old, new = device.lines("A", 5, "old"), device.lines("B", 6, "new")
    assert device.power_up(kit.package("new", 6), cut) == old + "power cut\n"
    assert device.power_up(kit.package("new", 6)) == old + "update: installed\n" + new
    assert device.power_up() == new


REFUSED_UNREAD = {
    "no package": ("not a manifest", lambda kit: bytes(400)),
    "cut in the manifest": ("truncated", lambda kit: kit.package("new", 6)[:191]),
    "nothing": ("truncated", lambda kit: b""),
    "counter raised by hand": ("bad signature", lambda kit: flipped(kit.package("new", 4), COUNTER, 2)),
    "board changed by hand": ("bad signature", lambda kit: flipped(kit.package("new", 6), 16)),
    "hash changed by hand": ("bad signature", lambda kit: flipped(kit.package("new", 6), HASH_B)),
    "point changed": ("bad signature", lambda kit: flipped(kit.package("new", 6), SIGNATURE)),
    "scalar changed": ("bad signature", lambda kit: flipped(kit.package("new", 6), MANIFEST_BYTES - 32)),
    "another key": ("wrong key", lambda kit: kit.package("new", 6, key=Ed25519PrivateKey.generate())),
    "lower counter": ("counter not higher", lambda kit: kit.package("new", 4)),
    "same counter": ("counter not higher", lambda kit: kit.package("new", 5)),
    "another board": ("wrong board", lambda kit: kit.package("new", 6, board="test-board-2")),
}


@pytest.mark.parametrize("case", REFUSED_UNREAD)
def test_a_bad_manifest_is_refused_by_name_before_the_flash_is_touched(device, kit, first_flash, case):
    reason, package = REFUSED_UNREAD[case]
    old = device.lines("A", 5, "old")
    assert device.power_up(package(kit)) == f"{old}update: refused: {reason}\n{old}"
    assert device.flash == first_flash


def test_another_key_that_claims_to_be_ours_is_a_bad_signature(device, kit, make_update):
    forger = Ed25519PrivateKey.generate()
    package = kit.package("new", 6)
    signed = package[:SIGNATURE]
    forged = signed + forger.sign(signed) + package[MANIFEST_BYTES:]
    assert "update: refused: bad signature\n" in device.power_up(forged)


@pytest.mark.parametrize("size", [0, 48, 16 * PAGE])
def test_a_signed_model_of_an_impossible_size_is_refused(device, kit, first_flash, size):
    signed = bytearray(kit.package("new", 6)[:SIGNATURE])
    signed[12:16] = struct.pack("<I", size)
    assert "update: refused: wrong size\n" in device.power_up(bytes(signed) + kit.key.sign(bytes(signed)))
    assert device.flash == first_flash


REFUSED_READ = {
    "first byte of the model": ("wrong model hash", lambda kit, start: flipped(kit.package("new", 6), start)),
    "last byte of the model": (
        "wrong model hash",
        lambda kit, start: flipped(kit.package("new", 6), -1 % (2 * start - 192)),
    ),
    "cut in the model": ("truncated", lambda kit, start: kit.package("new", 6)[:-1]),
    "cut before the model": ("truncated", lambda kit, start: kit.package("new", 6)[:start]),
    "images swapped": ("not a model", lambda kit, start: kit.package("new", 6, swapped=True)),
}


@pytest.mark.parametrize("case", REFUSED_READ)
def test_a_bad_model_is_refused_by_name_and_the_old_one_keeps_running(device, kit, first_flash, case):
    reason, package = REFUSED_READ[case]
    start = MANIFEST_BYTES + len(kit.images["new"][1])  # of the image for slot B
    old = device.lines("A", 5, "old")
    assert device.power_up(package(kit, start)) == f"{old}update: refused: {reason}\n{old}"
    assert device.flash[:SLOT_B] == first_flash[:SLOT_B]
    assert device.power_up(kit.package("new", 6)) == f"{old}update: installed\n" + device.lines("B", 6, "new")


def test_a_damaged_slot_gives_way_to_the_other_and_its_counter_still_counts(device, kit):
    device.power_up(kit.package("new", 6))
    device.damage(SLOT_B + PAGE + 100)
    note = ", as the recorded slot is refused: wrong model hash"
    fallback = device.lines("A", 5, "old", note)
    assert device.power_up(kit.package("new", 6)) == f"{fallback}update: refused: counter not higher\n{fallback}"
    assert device.power_up(kit.package("new", 7)) == f"{fallback}update: installed\n" + device.lines("B", 7, "new")


def test_two_damaged_slots_boot_nothing_and_take_an_update(device, kit):
    device.damage(SLOT_A + 20)
    installed = "boot: no verified model\nupdate: installed\n" + device.lines("A", 6, "new")
    assert device.power_up(kit.package("new", 6)) == installed


def test_a_damaged_record_boots_the_verified_model_with_the_highest_counter(device, kit):
    device.power_up(kit.package("new", 6))
    for entry in range(2):
        device.damage(32 * entry + 8)
    note = ", as the recorded slot is refused: not a manifest"
    assert device.power_up() == device.lines("B", 6, "new", note)


@settings(max_examples=60, deadline=None)
@given(message=st.binary(max_size=400))
def test_hashes_equal_hashlib(native_crypto, message):
    library = ctypes.CDLL(str(native_crypto))
    for name in ("sha256", "sha512"):
        digest = ctypes.create_string_buffer(hashlib.new(name).digest_size)
        getattr(library, name)(digest, message, ctypes.c_uint32(len(message)))
        assert digest.raw == hashlib.new(name, message).digest()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=192),
    place=st.integers(0, 2**20),
    bit=st.integers(0, 7),
)
def test_signatures_verify_exactly_when_nothing_was_changed(native_crypto, seed, message, place, bit):
    verify = ctypes.CDLL(str(native_crypto)).signature_is_valid
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)

    def is_valid(data):
        return verify(data[:64], data[64:96], data[96:], ctypes.c_uint32(len(data) - 96))

    whole = signature + public + message
    assert is_valid(whole) == 1
    assert is_valid(flipped(whole, place % len(whole), 1 << bit)) == 0
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER  # the same point, another encoding
    assert is_valid(signature[:32] + scalar.to_bytes(32, "little") + public + message) == 0


def test_a_message_longer_than_the_buffer_is_refused(native_crypto):
    key, message = Ed25519PrivateKey.generate(), bytes(193)
    verify = ctypes.CDLL(str(native_crypto)).signature_is_valid
    assert verify(key.sign(message), key.public_key().public_bytes_raw(), message, ctypes.c_uint32(193)) == 0


@pytest.mark.parametrize(("counter", "board"), [(0, "b"), (2**32, "b"), (1, ""), (1, "sixteen-letters-"), (1, "ä")])
def test_make_update_refuses_what_no_device_could_take(make_update, counter, board):
    with pytest.raises(ValueError, match=r"wanted|ascii"):
        make_update.make_package(Ed25519PrivateKey.generate(), board, counter, (b"a", b"b"))


def test_keys_are_never_replaced(make_update, tmp_path, capsys):
    assert make_update.main(["keys", str(tmp_path), "--board", "b"]) == 0
    before = (tmp_path / "signing.pem").read_bytes()
    assert make_update.main(["keys", str(tmp_path), "--board", "b"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert (tmp_path / "signing.pem").read_bytes() == before
    assert (tmp_path / "signing.pem").stat().st_mode & 0o077 == 0
