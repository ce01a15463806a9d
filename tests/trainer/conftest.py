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
def starter(folder: Path) -> Iterator[Starter]:
    """Start worker pods as processes, and end those that are left behind."""
    program = [sys.executable, str(Path(__file__).with_name("pods.py"))]
    with subprocess.Popen(
        program, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
def references(start: Starter) -> References:
    """Runs on one process, to compare with."""
    return References(start)
