"""Manifests: canonical, closed to unknown fields, and never a crash on any bytes."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.manifest import (
    Cut,
    FileEntry,
    Manifest,
    ManifestError,
    Preprocessing,
    Quantisation,
    TensorSpec,
    artefact_id,
    canonical_bytes,
    make_cut_id,
    parse_manifest,
)

LATENT = TensorSpec(
    name="z", engine_name="z", dtype="uint8", shape=(1, 4), quantisation=Quantisation(scale=0.1, zero_point=3)
)


@pytest.fixture
def manifest(add_one):
    return add_one.manifest


def test_round_trip_keeps_the_id(manifest):
    again = parse_manifest(canonical_bytes(manifest))
    assert again == manifest
    assert artefact_id(again) == artefact_id(manifest)


def test_bytes_that_are_not_canonical_are_refused(manifest):
    pretty = json.dumps(json.loads(canonical_bytes(manifest)), indent=1).encode()
    with pytest.raises(ManifestError, match="canonical"):
        parse_manifest(pretty)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d["engine"].update(threads=0), "threads"),
        (lambda d: d.update(role="boss"), "boss"),
        (lambda d: d.pop("entry"), "entry"),
        (lambda d: d.update(entry="nowhere.onnx"), "nowhere"),
        (lambda d: d["engine"].update(custom_ops="evil.so"), "custom_ops"),
        (lambda d: d["files"][0].update(size=-1), "size"),
        (lambda d: d["files"][0].update(sha256="XYZ"), "sha256"),
        (lambda d: d["files"].append(d["files"][0]), "twice"),
        (lambda d: d["inputs"][0].update(shape=[1, 0]), "sizes"),
        (lambda d: d["inputs"][0].update(shape=[1 << 20] * 6), "sizes"),
        (lambda d: d["inputs"][0].update(dtype="object"), "object"),
        (lambda d: d.update(inputs=d["inputs"] * 9), "tensors"),
        (lambda d: d.update(role="head"), "cut"),
    ],
)
def test_a_wrong_field_is_refused_by_name(manifest, change, word):
    data = json.loads(canonical_bytes(manifest))
    change(data)
    raw = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ManifestError, match=word):
        parse_manifest(raw)


def test_a_huge_manifest_is_refused_unread():
    with pytest.raises(ManifestError, match="at most"):
        parse_manifest(b" " * (2 << 20))


def test_deep_nesting_is_refused():
    with pytest.raises(ManifestError):
        parse_manifest(b'{"schema":' + b"[" * 100_000)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_cannot_be_is_refused(manifest, scale):
    bad = msgspec.structs.replace(LATENT, quantisation=Quantisation(scale=scale, zero_point=0))
    changed = msgspec.structs.replace(manifest, inputs=(bad,))
    with pytest.raises(ManifestError, match="scale"):
        parse_manifest(canonical_bytes(changed))


def test_the_cut_id_depends_on_head_latent_codec_and_tables():
    base = {"head_sha256": "0" * 64, "tensors": (LATENT,), "codec": "raw", "tables_sha256": None}
    moved = msgspec.structs.replace(LATENT, quantisation=Quantisation(scale=0.2, zero_point=3))
    renamed = msgspec.structs.replace(LATENT, name="other")
    ids = {
        make_cut_id(**base),
        make_cut_id(**{**base, "head_sha256": "1" * 64}),
        make_cut_id(**{**base, "tensors": (moved,)}),
        make_cut_id(**{**base, "codec": "rans"}),
        make_cut_id(**{**base, "tables_sha256": "2" * 64}),
    }
    assert len(ids) == 5
    assert make_cut_id(**{**base, "tensors": (renamed,)}) == make_cut_id(**base)


def test_a_tail_says_which_heads_it_serves(manifest):
    tail = msgspec.structs.replace(manifest, role="tail", cut=Cut(tensors=(LATENT,), accepts=("0" * 16,)))
    assert parse_manifest(canonical_bytes(tail)).cut.accepts == ("0" * 16,)
    deaf = msgspec.structs.replace(tail, cut=Cut(tensors=(LATENT,)))
    with pytest.raises(ManifestError, match="cut ids"):
        parse_manifest(canonical_bytes(deaf))


@given(st.binary(max_size=300))
def test_random_bytes_give_a_named_error(data):
    with pytest.raises(ManifestError):
        parse_manifest(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda c: st.lists(c, max_size=3)
)


@given(field=st.sampled_from(sorted(Manifest.__struct_fields__)), value=JSON)
def test_any_value_in_any_field_gives_a_manifest_or_a_named_error(field, value):
    entry = FileEntry(path="m", sha256="0" * 64, size=1)
    data = {"schema": 1, "role": "whole", "entry": "m", "files": [msgspec.to_builtins(entry)], field: value}
    with pytest.raises(ManifestError):
        parse_manifest(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    "change",
    [{"std": (1.0, 0.0, 1.0)}, {"std": (1.0, 1.0)}, {"mean": ()}, {"crop": (0, 4)}, {"crop": (4, 1 << 40)},
     {"resize_short": 0}, {"resize_short": 1 << 30}],
    ids=str,
)  # fmt: skip
def test_a_preprocessing_that_no_picture_survives_is_refused(manifest, change):
    good = Preprocessing(crop=(4, 4), mean=(0.0,), std=(1.0,))
    parse_manifest(canonical_bytes(msgspec.structs.replace(manifest, preprocessing=good)))
    bad = msgspec.structs.replace(good, **change)
    with pytest.raises(ManifestError, match="`preprocessing`"):
        parse_manifest(canonical_bytes(msgspec.structs.replace(manifest, preprocessing=bad)))
