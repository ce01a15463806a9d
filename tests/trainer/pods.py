"""Worker pods as processes of this machine, for tests.

Importing torch takes longer than a whole test run, so one process (this file, run as a program) imports it once and
then forks a pod on request. Such a pod calls the same `launcher.main` as `python -m
trainyard_trainer`, which some tests start as well.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trainyard.config import RunConfig
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.termination import TerminationMessage

API_VERSION = f"{constants.GROUP}/{constants.VERSION}"
ENTRY = "trainyard_trainer.launcher.main:main"
ROOT = Path(__file__).parents[2]
FIRST_PORT, PORTS_PER_PROCESS = 20_000, 1_000
BUSY = 4
"""Factor of all waits for something that must happen. They are chosen for an idle machine, but tests run beside others
that come first, and some processors are half as fast; a wait for what never happens is a failure after any time."""


def _ports() -> Iterator[int]:
    """Yield ports of this test process, again and again, beginning at a different one in each run.

    They lie below the range that the kernel takes ports of outgoing connections from, so that none of them is taken
    between its choice here and its use in a pod. Parallel test processes have ranges of their own.
    """
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    first = FIRST_PORT + number % 10 * PORTS_PER_PROCESS
    for offset in itertools.count(os.getpid()):
        yield first + offset % PORTS_PER_PROCESS


_PORTS = _ports()


def free_port() -> int:
    """Return a port on which nothing listens."""
    for port in itertools.islice(_PORTS, PORTS_PER_PROCESS):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port of {PORTS_PER_PROCESS} is free")


@dataclass
class Pod:
    """One worker pod: a launcher and its training processes."""

    pid: int
    folder: Path
    metrics_port: int
    launcher_port: int
    wait: Callable[[float], int]

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def reports(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stdout.splitlines()]
        return [line for line in lines if "step" in line]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in self.stdout.splitlines()]
        return [line["evaluation"] for line in lines if "evaluation" in line]

    @property
    def word(self) -> TerminationMessage | None:
        return TerminationMessage.decode((self.folder / "termination").read_text())

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs."""
        return psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE

    def ranks(self) -> list[int]:
        """Process ids of the training processes, by local rank."""
        return sorted(child.pid for child in psutil.Process(self.pid).children())

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        wait_until(lambda: any(r["step"] >= step for r in self.reports), seconds, lambda: self.stderr)


def wait_until_idle(pids: list[int], seconds: float = 30) -> None:
    """Wait until processes sleep and use no processor for a fifth of a second: they wait for something.

    A process that gets no processor on a busy machine does not sleep, it is runnable.
    """
    processes = [psutil.Process(pid) for pid in pids]

    def idle() -> bool:
        before = [process.cpu_times() for process in processes]
        time.sleep(0.2)
        asleep = all(process.status() == psutil.STATUS_SLEEPING for process in processes)
        return asleep and [process.cpu_times() for process in processes] == before

    wait_until(idle, seconds)


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = str) -> None:
    end = time.monotonic() + BUSY * seconds
    while not condition():
        assert time.monotonic() < end, f"not within {BUSY * seconds} s: {explain()}"
        time.sleep(0.02)


@dataclass
class Starter:
    """Starts pods; `zygote` is the process that forks them."""

    folder: Path
    zygote: subprocess.Popen[str]
    started: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    folders: dict[int, Path] = field(default_factory=dict)

    def __call__(
        self,
        config: RunConfig,
        pods: int = 1,
        procs: int = 1,
        entry: str = ENTRY,
        env: dict[str, str] | None = None,
    ) -> list[Pod]:
        """Start workers with so many processes each, and after them the parameter server, if the run has one."""
        port, size = free_port(), pods * procs + config.servers
        whole = {"WORLD_SIZE": str(size)} if config.servers else {}
        env = {"PET_NNODES": str(pods + config.servers), **whole, **(env or {})}
        workers = [self._start(config, procs, entry, port, index, env) for index in range(pods)]
        place = {"RANK": str(size - 1)}
        return [*workers, *(self._start(config, 1, entry, port, pods, env | place) for _ in range(config.servers))]

    def _start(self, config: RunConfig, procs: int, entry: str, port: int, index: int, env: dict[str, str]) -> Pod:
        self.started += 1
        folder = self.folder / f"pod{self.started}"
        folder.mkdir()
        for name in ("termination", "stdout", "stderr"):
            (folder / name).touch()
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        metrics_port, launcher_port = free_port(), free_port()
        request = {
            "entry": entry,
            "folder": str(folder),
            "env": {
                constants.ENV_CONFIG: str(folder / "config.json"),
                launcher_protocol.ENV_TERMINATION_LOG: str(folder / "termination"),
                launcher_protocol.ENV_ATTEMPT: "3",
                constants.ENV_METRICS_PORT: str(metrics_port),
                launcher_protocol.ENV_LAUNCHER_PORT: str(launcher_port),
                constants.ENV_CACHE: str(self.folder / "cache"),
                "PET_NODE_RANK": str(index),
                "PET_NPROC_PER_NODE": str(procs),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                **env,
            },
        }
        pid = self._ask(request)["pid"]
        self.folders[pid] = folder
        # Process ids are used again: an earlier pod may have had this one.
        self.codes.pop(pid, None)
        return Pod(pid, folder, metrics_port, launcher_port, lambda seconds: self._wait(pid, seconds))

    def _wait(self, pid: int, seconds: float) -> int:
        def ended() -> bool:
            self.codes.update({int(k): v for k, v in self._ask({"reap": True}).items()})
            return pid in self.codes

        wait_until(ended, seconds, lambda: _where(pid, self.folders[pid]))
        return self.codes[pid]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        self.zygote.stdin.write(json.dumps(request) + "\n")
        self.zygote.stdin.flush()
        answer: dict[str, Any] = json.loads(self.zygote.stdout.readline())
        return answer


def _where(pid: int, folder: Path) -> str:
    """Return the output of a pod that does not end, and the stacks of its ranks."""
    for rank in psutil.Process(pid).children():
        rank.send_signal(signal.SIGUSR1)
    time.sleep(1)
    return (folder / "stdout").read_text()[-2000:] + (folder / "stderr").read_text()


def finish(pods: list[Pod], seconds: float = 60) -> list[int]:
    """Wait for pods and return their exit codes."""
    return [pod.wait(seconds) for pod in pods]


def environment() -> dict[str, str]:
    """Return the environment of child interpreters: one thread each; compiled modules are kept."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


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


def serve() -> None:
    """Fork a pod for each line of standard input."""
    import importlib

    import torch._dynamo  # noqa: F401

    import trainyard_trainer.launcher.main
    import trainyard_trainer.rank_process  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, int] = {}
        if "reap" in request:
            while (found := _reap()) is not None:
                answer[str(found[0])] = found[1]
        elif (pid := os.fork()) > 0:
            answer["pid"] = pid
        else:
            os.setsid()
            _give_way()
            os.environ.update(request["env"])
            for descriptor, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
                os.dup2(os.open(Path(request["folder"], name), os.O_RDWR | os.O_APPEND), descriptor)
            sys.argv = ["trainyard_trainer"]
            module, _, name = request["entry"].partition(":")
            getattr(importlib.import_module(module), name)()
            os._exit(0)
        print(json.dumps(answer), flush=True)


def _give_way() -> None:
    """Let tests that wait go first if this process runs at a low priority beside them.

    Where the scheduler groups processes by session, the priority of a process counts only within its session, and a new
    session begins with the normal one. 10 is a tenth of that: enough to go on, however busy the machine is.
    """
    group = Path("/proc/self/autogroup")
    if os.nice(0) > 0 and group.exists():
        with suppress(OSError):  # for a user other than root the kernel takes ten such changes per second
            group.write_text("10")


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


if __name__ == "__main__":
    serve()
