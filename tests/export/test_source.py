import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.errors import MissingDependencyError
from export.modules import load_module
from export.source import SourceError, find_source, read_source
from export.tflite_model import read_tflite


@pytest.mark.parametrize(
    "text", ["", "model", "a.pt", "pkg:", ":make", "pkg:make()", "pkg:a.b", "pk g:make", "http://x:y"]
)
def test_what_is_no_model_is_refused_with_the_three_forms(text):
    with pytest.raises(SourceError, match=r"module:function.*\.onnx.*\.tflite"):
        find_source(text)


def test_a_module_is_only_named_not_imported():
    source = find_source("no_such_module.at_all:make")
    assert (source.kind, source.name, source.sha256) == ("torch", "make", "")


def test_a_file_is_hashed_and_read_back(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    source = find_source(path)
    assert (source.kind, source.name) == ("tflite", "m")
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(SourceError, match="other bytes"):
        read_source(source)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n"),
        ("m.onnx", b"PK\x03\x04" + bytes(64)),
        ("m.tflite", b"\x08\x0a" + bytes(64)),
        ("m.tflite", b"TFL3"),
    ],
)
def test_another_format_is_refused_before_a_parser_sees_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match="Wanted"):
        find_source(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"nothing at .*gone\.onnx"):
        find_source(tmp_path / "gone.onnx")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_tflite_is_a_named_error_or_still_a_model(exported, data):
    whole = bytearray(exported("linux-x86-64", engine="litert", calibrated=True).entry.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(16, len(whole)))
    with contextlib.suppress(SourceError):
        read_tflite(bytes(whole[:cut]), where="a test")


def test_what_a_module_of_ones_own_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import library_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match="needy, found that it needs the module 'library_that_nobody_has'"):
        load_module(find_source("needy:make"))
