import pytest

from benchmarks import bench_ota, bench_ota_tuf
from orchestrator.artefact_server import ArtefactServer


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """What happens to one version under an attack."""
    monkeypatch.setattr(bench_ota_tuf, "EACH", 1)
    workshop, link = bench_ota.Workshop(tmp_path), tmp_path / "published"
    with ArtefactServer(tmp_path / "served", metadata=link) as server:
        yield lambda attack: bench_ota_tuf.refused(workshop, server.metadata_url, link, attack)


def test_every_attack_has_its_named_error_and_without_one_the_version_is_taken(counted):
    for name, _, code, attack in bench_ota_tuf.ATTACKS:
        assert counted(attack) == {code: 1}, name
    assert counted(lambda host, coming, _: host.list(bench_ota_tuf.statement_of(coming))) == {"taken": 1}
