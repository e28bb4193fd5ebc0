import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.errors import EdgeError
from edge_runtime.gate import Gatekeeper, WrongTargetError, fits_board, install_trust
from edge_runtime.signature import (
    BadSignatureError,
    RollbackError,
    SignatureError,
    SignatureFile,
    SignedTrust,
    Statement,
    Trust,
    TrustError,
    TrustFile,
    UnsignedError,
    WrongKeyError,
    check_floor,
    check_statement,
    parse_trust_file,
    statement_bytes,
    trust_bytes,
)
from orchestrator.signing import public_key, sign_bytes

KEYS = [Ed25519PrivateKey.generate() for _ in range(4)]
PUBLIC = [public_key(key, f"k{number}") for number, key in enumerate(KEYS)]
ARTEFACT = hashlib.sha256(b"manifest").hexdigest()


def key_set(version=1, threshold=1, keys=(0,)):
    return Trust(version=version, threshold=threshold, keys=tuple(PUBLIC[number] for number in keys))


def signed(keys=(0,), rotations=(), **changes):
    values = {"artefact": ARTEFACT, "line": "model", "counter": 5, "floor": 5, **changes}
    statement = Statement(**values)
    signatures = sign_bytes([KEYS[number] for number in keys], statement_bytes(statement))
    return msgspec.json.encode(SignatureFile(statement=statement, signatures=signatures, rotations=tuple(rotations)))


def rotation(trust, keys):
    return SignedTrust(trust=trust, signatures=sign_bytes([KEYS[number] for number in keys], trust_bytes(trust)))


def test_a_signature_holds_for_its_artefact_and_its_keys_alone():
    statement, newest = check_statement(signed(), ARTEFACT, key_set())
    assert (statement.counter, newest.version) == (5, 1)
    with pytest.raises(WrongKeyError, match="k1"):
        check_statement(signed(), ARTEFACT, key_set(keys=(1,)))
    with pytest.raises(BadSignatureError, match="changed after it was signed"):
        check_statement(signed(), "0" * 64, key_set())
    with pytest.raises(UnsignedError, match="headtail sign"):
        check_statement(None, ARTEFACT, key_set())


def test_every_key_counts_once_towards_the_threshold():
    two = key_set(threshold=2, keys=(0, 1, 2))
    check_statement(signed((0, 2)), ARTEFACT, two)
    with pytest.raises(WrongKeyError, match="found 1"):
        check_statement(signed((0, 0)), ARTEFACT, two)
    with pytest.raises(WrongKeyError, match="found 1"):
        check_statement(signed((1, 3)), ARTEFACT, two)
    with pytest.raises(TrustError, match="threshold"):
        parse_trust_file(msgspec.json.encode(TrustFile(versions=(SignedTrust(trust=key_set(threshold=2)),))))
    with pytest.raises(TrustError, match="twice"):
        parse_trust_file(msgspec.json.encode(TrustFile(versions=(SignedTrust(trust=key_set(keys=(0, 0))),))))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_changed_bit_of_a_signature_file_passes(position, bit):
    data = bytearray(signed())
    data[position % len(data)] ^= 1 << bit
    try:
        statement, _ = check_statement(bytes(data), ARTEFACT, key_set())
    except SignatureError:
        return
    assert statement == check_statement(signed(), ARTEFACT, key_set())[0], "only what means the same passes"


def test_devices_follow_rotations_that_old_and_new_keys_signed():
    second = rotation(key_set(2, keys=(1,)), (0, 1))
    third = rotation(key_set(3, threshold=2, keys=(1, 2)), (1, 2))
    data = signed((1, 2), (second, third))
    for held in (key_set(), second.trust, third.trust):
        assert check_statement(data, ARTEFACT, held)[1] == third.trust
    with pytest.raises(WrongKeyError):
        check_statement(signed((0,)), ARTEFACT, second.trust)
    with pytest.raises(TrustError, match="found 3"):
        check_statement(signed((1, 2), (third,)), ARTEFACT, key_set())
    for keys in ((0,), (1,), (3, 1)):
        with pytest.raises(TrustError, match="old and new"):
            check_statement(signed((1,), (rotation(key_set(2, keys=(1,)), keys),)), ARTEFACT, key_set())


def test_a_signature_over_a_key_set_is_none_over_a_statement():
    assert (
        trust_bytes(key_set())[:18] != statement_bytes(Statement(artefact=ARTEFACT, line="m", counter=0, floor=0))[:18]
    )


def test_nothing_below_the_floor_of_its_line_passes():
    statement = check_statement(signed(counter=4, floor=3), ARTEFACT, key_set())[0]
    check_floor(statement, {})
    check_floor(statement, {"model": 4, "other": 9})
    with pytest.raises(RollbackError, match="5 or newer"):
        check_floor(statement, {"model": 5})


def test_the_gate_needs_a_signature_once_there_is_a_key_set(tmp_path):
    open_gate = Gatekeeper(tmp_path, "linux-x86-64", unsigned=True)
    assert open_gate.ask(b"manifest", None).statement is None
    with pytest.raises(UnsignedError, match="edge-agent trust"):
        Gatekeeper(tmp_path, "linux-x86-64", unsigned=False).ask(b"manifest", None)
    install_trust(tmp_path / "trust.json", TrustFile(versions=(SignedTrust(trust=key_set()),)))
    gate = Gatekeeper(tmp_path, "linux-x86-64", unsigned=True)
    with pytest.raises(UnsignedError):
        gate.ask(b"manifest", None)
    second = rotation(key_set(2, keys=(1,)), (0, 1))
    data = signed((1,), (second,))
    gate.hold(gate.ask(b"manifest", data).trust, data)
    with pytest.raises(WrongKeyError):
        Gatekeeper(tmp_path, "linux-x86-64", unsigned=True).ask(b"manifest", signed((0,)))
    (tmp_path / "trust.json").write_bytes(b"{")
    with pytest.raises(TrustError):
        Gatekeeper(tmp_path, "linux-x86-64", unsigned=True).ask(b"manifest", None)


@pytest.mark.parametrize(
    ("target", "board", "fits"),
    [
        ("rpi-4b", "rpi-4b", True),
        ("rpi-4b", "rpi-4b-4gb", True),
        ("rpi-4b-4gb", "rpi-4b", False),
        ("rpi-4b", "linux-aarch64", True),
        ("linux-aarch64", "rpi-5", True),
        ("rpi-4b", "rpi-5", False),
        ("linux-x86-64", "linux-aarch64", False),
        ("stm32f746g-disco", "linux-aarch64", False),
        ("a-board-of-the-future", "linux-aarch64", False),
    ],
)
def test_boards_fit_their_family_and_architecture(target, board, fits):
    assert fits_board(target, board) is fits


def test_another_board_is_named(tmp_path, add_one):
    with pytest.raises(WrongTargetError, match="rpi-5"):
        Gatekeeper(tmp_path, "rpi-5", unsigned=True).check_target(add_one.manifest)


@given(st.binary(max_size=300))
def test_any_bytes_are_named(data):
    with pytest.raises(EdgeError):
        check_statement(data, ARTEFACT, key_set())
    with pytest.raises(EdgeError):
        parse_trust_file(data)
