from collections.abc import Iterator

import pytest

from tests.trainer.layouts import References
from tests.trainer.pods import Starter, starter


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
