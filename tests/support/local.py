"""A small run on this machine, under the operator's own loop: how to wait for it, hurt it, and read what it did."""

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil

from tests.builders import make_job, trainer_spec
from trainyard.resource.job import TrainingJob
from trainyard_cli.local import LocalRun
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.local.backend import POD_UID_VARIABLE
from trainyard_operator.local.process_tree import process_tree

PATIENCE = 90.0
"""Seconds in which whatever is waited for happens, on a busy machine too."""


def small_job(name: str, steps: int, *, policy: dict[str, Any] | None = None, **spec: Any) -> TrainingJob:
    """Two workers that train a tiny model and report each step."""
    model = {"name": "llama", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16}
    trainer = trainer_spec(model=model, data=data, batch={"global": 8}, stop={"steps": steps}, logEverySteps=1)
    policy = {"maxRestarts": 1, "backoff": {"initialSeconds": 0}, **(policy or {})}
    return make_job(name, **{"replicas": 2, "trainer": trainer, "restartPolicy": policy, **spec})


def reports(folder: Path) -> list[dict[str, Any]]:
    """Return the log entries of rank 0 in all attempts, in order."""
    lines = [line for log in (folder / "pods").glob("*-0/log") for line in log.read_text().splitlines()]
    found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return sorted((entry for entry in found if "time" in entry), key=lambda entry: str(entry["time"]))


def losses(folder: Path) -> dict[int, float]:
    """Of each step the one that counted: that of the last attempt to make it."""
    return {entry["step"]: entry["loss"] for entry in reports(folder) if "loss" in entry}


async def until_over(run: LocalRun, patience: float = PATIENCE) -> None:
    """Wait for the end, or for a suspension to be complete."""
    async with asyncio.timeout(patience):
        while not run.finished:
            await run.changed.wait()
            run.changed.clear()


async def until_step(run: LocalRun, step: int, *, saved: bool = False, patience: float = PATIENCE) -> None:
    """Wait until a step is done (`saved`: and in a checkpoint), as the status has it, or the run is over."""
    async with asyncio.timeout(patience):
        while not run.finished:
            progress = run.job.status.progress
            if progress is not None and ((progress.checkpoint_step if saved else progress.step) or 0) >= step:
                return
            await run.changed.wait()
            run.changed.clear()


def worker_of(run: LocalRun, index: int) -> WorkerPod | None:
    """The pod with an index, if there is one."""
    return next((w for w in run.cache.workers(run.key) if w.index == index), None)


def processes(run: LocalRun, index: int) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The launcher of a pod, and its ranks; none of either while the pod starts or ends."""
    worker = worker_of(run, index)
    members = process_tree(POD_UID_VARIABLE, worker.uid) if worker is not None else []
    pids = {p.pid for p in members}
    launchers = [p for p in members if p.ppid() not in pids]
    heads = {p.pid for p in launchers}
    return launchers, [p for p in members if p.ppid() in heads]
