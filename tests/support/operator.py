"""The operator as a real process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.kube import eventually

PROGRAM = Path(sys.executable).parent / "trainyard-operator"


class OperatorProcess:
    """One process of `trainyard-operator` on a free port."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        command = [str(PROGRAM), "--trainer-image", "example.com/trainer:test", "--port", "0"]
        self.log = log
        with log.open("ab") as output:
            self._start = log.stat().st_size
            self.process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What this process has logged: an object for each line."""
        text = self.log.read_bytes()[self._start :].decode()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def logged(self, text: str) -> list[str]:
        """Log messages that hold a text."""
        return [line["message"] for line in self.lines if text in line["message"]]

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of one of its pages."""
        announced = self.logged("on port ")
        assert announced, f"serves nothing yet (exit code {self.process.poll()})"
        port = int(announced[0].rpartition(" ")[2])
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}{path}") as response:
            return response.status, await response.text()

    async def ready(self, *, seconds: float = 60.0) -> None:
        """Wait until it says so."""

        async def check() -> None:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert (await self.page("/readyz"))[0] == 200

        await eventually(check, seconds=seconds)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    async def stop(self, *, seconds: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, seconds)


@asynccontextmanager
async def operating(environment: Mapping[str, str], log: Path, *, ready: bool = True) -> AsyncIterator[OperatorProcess]:
    """An operator for the time of the context. It must not have logged a bug of its own."""
    operator = OperatorProcess(environment, log)
    try:
        if ready:
            await operator.ready()
        yield operator
    finally:
        operator.kill()
    assert [line for line in operator.lines if "exception" in line] == []


_NURSERY = """
import os, sys
from trainyard_operator.main import main
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        try:
            main()
        finally:
            os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Nursery:
    """Starts operators in milliseconds: a process that has imported everything forks each of them."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        command = [sys.executable, "-c", _NURSERY, "--trainer-image", "example.com/trainer:test", "--port", "0"]
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def _ask(self, question: bytes = b"") -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[None]:
        """One operator, killed with SIGKILL at the end of the context."""
        pid = int(await asyncio.to_thread(self._ask, b"one\n"))
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.to_thread(self._ask) == "ended"

    def close(self) -> None:
        """No operator is running any more."""
        with self._process:
            self._process.kill()
