from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.need import require
from tests.support.object_store import ObjectStore, object_store, server_program
from tests.trainer.layouts import References
from tests.trainer.pods import Starter, starter
from trainyard.protocol import constants
from trainyard_trainer.data import downloads
from trainyard_trainer.runtime import object_streams
from trainyard_trainer.runtime.object_store import ObjectPath


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts worker pods as processes."""
    with starter(tmp_path_factory.mktemp("pods")) as starts:
        yield starts


@pytest.fixture(scope="session")
def start_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts worker pods of private runs."""
    with starter(tmp_path_factory.mktemp("private"), "private_pods.py") as starts:
        yield starts


@pytest.fixture(scope="session")
def references(start: Starter) -> References:
    """Runs on one process, to compare with."""
    return References(start)


@pytest.fixture(scope="session")
def started_store() -> Iterator[ObjectStore]:
    require(server_program(), "uv, to install moto's server")
    with object_store() as running:
        yield running


@pytest.fixture
def store(started_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The store, which works at first; this process uses it, too."""
    started_store.proxy.come_back()
    for name, value in started_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(constants.ENV_CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(object_streams, "ATTEMPTS", 2)
    object_streams.file_system_of.cache_clear()
    downloads._downloaded.cache_clear()
    yield started_store
    started_store.proxy.come_back()
    object_streams.file_system_of.cache_clear()


@pytest.fixture
def bucket(store: ObjectStore) -> ObjectPath:
    return ObjectPath(store.make_bucket())
