"""A cut with the entropy coder: the same answers, fewer bytes, and no tail for other tables."""

import numpy as np
import pytest

from edge_runtime.artefact import open_artefact
from edge_runtime.codecs import codec_of, codecs_of
from edge_runtime.manifest import ManifestError, canonical_bytes, parse_manifest
from edge_runtime.session import open_session
from edge_runtime.wire import CODEC_ENTROPY, FormatError, decode_frame, decode_tensors, encode_tensors, limits_of
from export.cut_pair import cut_network, list_cuts
from orchestrator.cli import run


@pytest.fixture(scope="module")
def pair(exported, tiny_calibration, tmp_path_factory):
    """(whole, head, tail) cut at the largest tensor, with tables."""
    whole = exported("this", precision="int8", calibrated=True)
    cut = max(list_cuts(whole.folder).cuts, key=lambda one: one.payload_bytes)
    head, tail = cut_network(whole.folder, cut.names, out=tmp_path_factory.mktemp("pair"), calibration=tiny_calibration)
    return whole, head, tail


def test_a_coded_latent_gives_the_unsplit_networks_bytes_and_is_smaller(pair, tiny_calibration):
    _, head, tail = pair
    sessions = [open_session(one) for one in pair]
    code, codec = codec_of(head)
    assert code == CODEC_ENTROPY
    for picture in np.load(tiny_calibration)["picture"][:8, None]:
        latents = sessions[1].run([picture])
        data = b"".join(encode_tensors(latents, cut_id=bytes.fromhex(head.key), codec=codec, code=code))
        raw = b"".join(encode_tensors(latents, cut_id=bytes.fromhex(head.key)))
        assert len(data) < len(raw)
        arrays = decode_tensors(decode_frame(data, limits_of(tail.manifest.inputs)), codecs_of(tail))
        np.testing.assert_array_equal(sessions[2].run(arrays)[0], sessions[0].run([picture])[0])


def test_a_tail_refuses_frames_of_other_tables_and_raw_frames(pair):
    _, head, tail = pair
    latents = [np.zeros(spec.shape, spec.dtype) for spec in head.manifest.outputs]
    code, codec = codec_of(head)
    data = bytearray(b"".join(encode_tensors(latents, cut_id=bytes(8), codec=codec, code=code)))
    frame = decode_frame(bytes(data), limits_of(tail.manifest.inputs))
    other = type(frame)(frame.codec, frame.cut_id, b"abcd", frame.tensors, frame.layers)
    with pytest.raises(FormatError, match="table set"):
        decode_tensors(other, codecs_of(tail))
    raw = decode_frame(b"".join(encode_tensors(latents, cut_id=bytes(8))), limits_of(tail.manifest.inputs))
    with pytest.raises(FormatError, match="codec"):
        decode_tensors(raw, codecs_of(tail))


def test_the_cut_id_knows_the_tables(pair, tmp_path):
    whole, head, _ = pair
    raw_head, _ = cut_network(whole.folder, [t.engine_name for t in head.manifest.cut.tensors], out=tmp_path)
    assert raw_head.key != head.key


def test_a_manifest_whose_tables_are_not_listed_is_refused(pair):
    _, head, _ = pair
    data = canonical_bytes(head.manifest).replace(head.manifest.cut.tables_sha256.encode(), b"0" * 64, 1)
    with pytest.raises(ManifestError, match="table file"):
        parse_manifest(data)


def test_the_command_wants_codec_and_calibration_together(pair, capsys):
    whole = str(pair[0].folder)
    assert run(["split", whole, "--at", "0", "--codec", "rans"]) == 1
    assert "--calibration" in capsys.readouterr().err


def test_the_pair_verifies_and_opens_from_disk(pair):
    for one in pair:
        assert open_artefact(one.folder) == one
