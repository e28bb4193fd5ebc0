"""The bench of learned bottlenecks: rows that are measurements, a fuzzer that finds what is planted."""

import shutil

import pytest

from benchmarks.rows import parse_measurement
from benchmarks.split import codec, fuzz
from edge_runtime.entropy import count_tables


def test_sizes_of_the_smaller_case_are_measurements_and_hold():
    latents = codec.case(28)
    found = codec.coders(latents, count_tables([latents]))
    rows = [parse_measurement("codec", row) for row in codec.size_rows(28, found, codec.entropy_bytes(latents))]
    ours = next(row for row in rows if row.id == "codec_over.18816")
    assert 0 < ours.value <= ours.bar


def test_seeds_of_the_fuzzer_are_inputs_within_its_limit(tmp_path):
    fuzz.write_seeds(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 32
    assert max(sizes) <= fuzz.MAX_BYTES


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang comes with `make setup-dev`")
def test_a_planted_bug_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SOURCES", tmp_path)
    for name in ("ht_entropy.c", "ht_entropy.h"):
        source = (fuzz.ROOT / "edge_runtime" / "csrc" / name).read_text()
        (tmp_path / name).write_text(source.replace("if (coder->end - coder->at < 2) {", "if (0) {"))
    try:
        done = fuzz.fuzz(20)
    except fuzz.RowError as error:
        pytest.skip(f"no libFuzzer: {str(error)[:200]}")
    assert done.findings
