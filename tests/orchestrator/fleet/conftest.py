"""A store on each database, and devices in it."""

import pytest

from benchmarks.own_postgres import own_postgres
from edge_runtime.messages import Birth, Slots
from orchestrator.fleet import presence
from orchestrator.fleet.registry import NewArtefact, register_artefact, register_version
from orchestrator.fleet.store import Store
from orchestrator.fleet.tables import Base


@pytest.fixture(scope="session")
def postgres_url():
    """A PostgreSQL that the session shares."""
    with own_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """An empty store; every test that uses it runs on both databases."""
    if request.param == "sqlite":
        opened = Store(f"sqlite:///{tmp_path / 'fleet.sqlite'}")
    else:
        opened = Store(request.getfixturevalue("postgres_url"))
        with opened.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
    yield opened
    opened.close()


@pytest.fixture
def lite(tmp_path):
    """An empty store on SQLite."""
    opened = Store(f"sqlite:///{tmp_path / 'fleet.sqlite'}")
    yield opened
    opened.close()


def boot(number):
    return f"{number:016x}"


def birth(number=1, *, boot_count=1, **more):
    values = {"board": "rpi-5", "agent": "1", "engines": ("onnxruntime",), "max_block_bytes": 65536, "slots": Slots()}
    return Birth(boot=boot(number), boot_count=boot_count, **{**values, **more})


def bear(store, *names, now_ms=1000, **more):
    """Devices say hello."""
    with store.write() as session:
        for name in names:
            assert presence.record_birth(session, f"default/{name}", birth(**more), now_ms=now_ms)


def add_versions(store, *names):
    """Versions, each with a whole model of its own."""
    with store.write() as session:
        for index, name in enumerate(names):
            whole = _registered(
                session, index + 1, role="whole", model="m", engine="onnxruntime", target="linux-x86-64"
            )
            register_version(session, name, whole=whole, actor="test", now_ms=1)


def add_agent(store, name):
    """A version of the agent."""
    with store.write() as session:
        agent = _registered(session, ord("a"), role="agent", model="agent 2", engine="python 3", target="any")
        register_version(session, name, agent=agent, actor="test", now_ms=1)


def _registered(session, number, **more):
    """The id of a new artefact."""
    artefact = NewArtefact(
        id=f"{number:064x}", zip_sha256=f"{number + 100:064x}", size=1000, path="/nowhere.zip", **more
    )
    register_artefact(session, artefact, now_ms=1)
    return artefact.id
