import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.trainer.layouts import References
from tests.trainer.pods import Starter, environment


@contextmanager
def starter(folder: Path, program: str = "pods.py") -> Iterator[Starter]:
    """Start worker pods as processes, and end those that are left behind. `program`: what forks them."""
    command = [sys.executable, str(Path(__file__).with_name(program))]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:
        yield Starter(folder, zygote)
        for process in psutil.Process(zygote.pid).children(recursive=True):
            process.send_signal(signal.SIGKILL)
        zygote.kill()


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
