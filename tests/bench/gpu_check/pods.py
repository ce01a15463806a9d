"""Pods as processes of this machine: the launcher, as the operator starts it, on some of the GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trainyard.config import RunConfig
from trainyard.net import free_port
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.termination import TerminationMessage

ROOT = Path(__file__).parents[3]


@dataclass
class Pod:
    """One pod of a run, and what it has said."""

    process: subprocess.Popen[bytes]
    folder: Path
    metrics_port: int
    memory: dict[str, float] = field(default_factory=dict)
    """Largest values of trainyard_memory_bytes that its metrics page has shown, by kind, over its ranks."""

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def reports(self) -> list[dict[str, Any]]:
        """Reports of steps, which rank 0 writes to its log."""
        lines = (json.loads(line) for line in (self.folder / "stdout").read_text().splitlines() if line[:1] == "{")
        return [line for line in lines if "step" in line and "loss" in line]

    @property
    def word(self) -> TerminationMessage | None:
        return TerminationMessage.decode((self.folder / "termination").read_text())

    def ranks(self) -> list[int]:
        """Process ids of its ranks."""
        return sorted(child.pid for child in psutil.Process(self.process.pid).children())

    def read_memory(self) -> None:
        """Read its metrics page; one that does not answer yet is read again later."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2) as answer:
                page = answer.read().decode()
        except OSError:
            return
        for line in page.splitlines():
            if line.startswith("trainyard_memory_bytes{"):
                kind = line.partition('kind="')[2].partition('"')[0]
                self.memory[kind] = max(self.memory.get(kind, 0.0), float(line.rpartition(" ")[2]))


@dataclass(frozen=True)
class Machine:
    """The devices of this machine, and a folder for runs."""

    gpus: int
    """0: the runs use processors."""
    ranks: int
    """Ranks of the largest run: one for each GPU."""
    folder: Path

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @contextmanager
    def run(
        self, name: str, config: RunConfig, pods: int = 1, env: dict[str, str] | None = None
    ) -> Iterator[list[Pod]]:
        """Start the pods of a run. What still runs at the end of the block is killed."""
        port, procs = free_port(), config.world_size // pods
        started = [self._start(f"{name}-{index}", config, index, pods, procs, port, env or {}) for index in range(pods)]
        try:
            yield started
        finally:
            for pod in started:
                if pod.process.poll() is None:
                    os.killpg(pod.process.pid, signal.SIGKILL)
                    pod.process.wait()

    def _start(
        self, name: str, config: RunConfig, index: int, pods: int, procs: int, port: int, env: dict[str, str]
    ) -> Pod:
        folder = self.folder / name.replace(" ", "-")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        for file in ("termination", "stdout", "stderr"):
            (folder / file).touch()
        metrics_port = free_port()
        variables = {
            constants.ENV_CONFIG: str(folder / "config.json"),
            constants.ENV_CACHE: str(self.folder / "cache"),
            constants.ENV_METRICS_PORT: str(metrics_port),
            launcher_protocol.ENV_TERMINATION_LOG: str(folder / "termination"),
            launcher_protocol.ENV_ATTEMPT: "1",
            "PET_NNODES": str(pods),
            "PET_NODE_RANK": str(index),
            "PET_NPROC_PER_NODE": str(procs),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            **self.visible_gpus(range(index * procs, (index + 1) * procs)),
            **env,
        }
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "trainyard_trainer"],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        return Pod(process, folder, metrics_port)

    def visible_gpus(self, numbers: range) -> dict[str, str]:
        """Return the variables that show a process these GPUs only, or none and one thread on processors."""
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def finish(pods: list[Pod], seconds: float) -> list[int]:
    """Wait for pods, read their metrics meanwhile, and return their exit codes.

    Raises:
        TimeoutError: they have not ended in time.
    """

    def ended() -> bool:
        for pod in pods:
            pod.read_memory()
        return all(pod.process.poll() is not None for pod in pods)

    wait_until(ended, seconds, lambda: pods[0].stderr[-2000:], pause=0.3)
    return [pod.process.returncode for pod in pods]


def wait_for_step(pod: Pod, step: int, seconds: float) -> None:
    """Wait until a pod has reported a step.

    Raises:
        TimeoutError: it has not in time, or has ended.
    """

    def reached() -> bool:
        if pod.process.poll() is not None:
            raise TimeoutError(f"the run ended before step {step}: {pod.stderr[-2000:]}")
        pod.read_memory()
        return any(report["step"] >= step for report in pod.reports)

    wait_until(reached, seconds, lambda: pod.stderr[-2000:], pause=0.05)


def wait_until(condition: Callable[[], bool], seconds: float, explain: Callable[[], str], pause: float) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {explain()}")
        time.sleep(pause)
