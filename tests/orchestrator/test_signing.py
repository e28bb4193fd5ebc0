import msgspec
import pytest

from edge_runtime.artefact import open_artefact, pack_artefact
from edge_runtime.signature import WrongKeyError, check_statement
from orchestrator.cli import run
from orchestrator.signing import KeyFileError, SigningError, make_key, read_key, read_trust_file, sign_artefact


@pytest.fixture
def artefact(network, tmp_path):
    """A copy of the whole model, to sign."""
    return open_artefact(pack_artefact(network.whole, tmp_path / "whole.zip"))


def test_two_holders_sign_one_after_the_other_and_the_id_stays(artefact, tmp_path, capsys):
    a, b = tmp_path / "a.pem", tmp_path / "b.pem"
    trust = tmp_path / "trust.json"
    assert run(["keys", "new", str(a)]) == 0
    assert run(["keys", "new", str(b)]) == 0
    assert a.stat().st_mode & 0o777 == 0o600
    assert (
        run(
            [
                "keys",
                "trust",
                str(a.with_suffix(".pub")),
                str(b.with_suffix(".pub")),
                "--threshold",
                "2",
                "--out",
                str(trust),
            ]
        )
        == 0
    )
    keys = read_trust_file(trust).newest
    before = artefact.id
    assert run(["sign", str(artefact.folder), "--key", str(a), "--counter", "7"]) == 0
    data = (artefact.folder / "manifest.sig").read_bytes()
    with pytest.raises(WrongKeyError, match="found 1"):
        check_statement(data, before, keys)
    assert run(["sign", str(artefact.folder), "--key", str(b)]) == 0
    statement, _ = check_statement((artefact.folder / "manifest.sig").read_bytes(), before, keys)
    assert (statement.counter, statement.floor, statement.line) == (7, 7, "tiny whole")
    assert open_artefact(artefact.folder).id == before
    assert run(["sign", str(artefact.folder), "--key", str(b), "--counter", "8"]) == 1
    assert "others have signed" in capsys.readouterr().err


def test_keys_are_rotated_with_the_old_ones(artefact, tmp_path, capsys):
    old, new, trust = tmp_path / "old.pem", tmp_path / "new.pem", tmp_path / "trust.json"
    for path in (old, new):
        make_key(path, name=path.stem)
    assert run(["keys", "trust", str(tmp_path / "old.pub"), "--out", str(trust)]) == 0
    held = read_trust_file(trust).newest
    change = ["keys", "rotate", str(trust), "--add", str(tmp_path / "new.pub"), "--remove", "old"]
    assert run([*change, "--key", str(new)]) == 1
    assert "old and new" in capsys.readouterr().err
    assert run([*change, "--key", str(new), "--key", str(old)]) == 0
    sign_artefact(artefact, [read_key(new)], trust=read_trust_file(trust))
    _, newest = check_statement((artefact.folder / "manifest.sig").read_bytes(), artefact.id, held)
    assert [key.name for key in newest.keys] == ["new"]
    capsys.readouterr()
    assert run(["keys", "show", str(trust), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["version"] == 2


def test_a_key_file_is_encrypted_and_never_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADTAIL_KEY_PASSPHRASE", "a secret of many words")
    path = tmp_path / "k.pem"
    assert run(["keys", "new", str(path)]) == 0
    assert b"ENCRYPTED" in path.read_bytes()
    with pytest.raises(KeyFileError, match="needs a passphrase"):
        read_key(path)
    with pytest.raises(KeyFileError, match="passphrase") as told:
        read_key(path, b"a wrong one")
    assert "wrong one" not in str(told.value)
    read_key(path, b"a secret of many words")
    assert run(["keys", "new", str(path)]) == 1
    said = capsys.readouterr()
    assert "there already" in said.err
    assert "secret" not in said.out + said.err


def test_a_floor_above_the_counter_and_no_key_are_named(artefact, tmp_path):
    make_key(tmp_path / "k.pem", name="k")
    key = read_key(tmp_path / "k.pem")
    with pytest.raises(SigningError, match="floor"):
        sign_artefact(artefact, [key], counter=3, floor=4)
    with pytest.raises(SigningError, match="--key"):
        sign_artefact(artefact, [])
    assert sign_artefact(artefact, [key]).statement.counter > 1_700_000_000
