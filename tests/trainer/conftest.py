import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.trainer.layouts import References
from tests.trainer.pods import Starter, environment


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts worker pods as processes, and ends those that a test leaves behind."""
    yield from _starter("pods.py", tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="session")
def start_private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts worker pods of private runs."""
    yield from _starter("private_pods.py", tmp_path_factory.mktemp("private"))


def _starter(program: str, folder: Path) -> Iterator[Starter]:
    command = [sys.executable, str(Path(__file__).with_name(program))]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:
        yield Starter(folder, zygote)
        for process in psutil.Process(zygote.pid).children(recursive=True):
            process.send_signal(signal.SIGKILL)
        zygote.kill()


@pytest.fixture(scope="session")
def references(start: Starter) -> References:
    """Runs on one process, to compare with."""
    return References(start)
