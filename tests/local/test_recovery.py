"""A run that loses a rank, or is suspended, goes on from its checkpoint, and its losses do not show it."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.builders import make_job, trainer_spec
from trainyard.job import TrainingJob
from trainyard.status import Phase
from trainyard_cli.local import LocalRun, local_run
from trainyard_operator.backends.family import family
from trainyard_operator.backends.process import MARK

STEPS = 300


def job(*, in_place: bool = True, **spec: Any) -> TrainingJob:
    model = {"name": "gpt", "preset": "nano", "dim": 32, "layers": 2, "heads": 4, "kvHeads": 2, "ffnDim": 64}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 16}
    trainer = trainer_spec(model=model, data=data, batch={"global": 8}, stop={"steps": STEPS}, logEverySteps=1)
    policy = {"limit": 1, "backoff": {"initialSeconds": 0}, "inPlace": in_place}
    return make_job("recovery", replicas=2, trainer=trainer, restartPolicy=policy, **spec)


def losses(folder: Path) -> dict[int, float]:
    """Of each step the one that counted: that of the last attempt to make it."""
    found = {}
    for log in sorted((folder / "pods").glob("*-0/log")):
        for line in log.read_text().splitlines():
            if line.startswith("{") and "loss" in (entry := json.loads(line)):
                found[entry["step"]] = entry["loss"]
    return found


async def until(run: LocalRun, condition: str, step: int = 0) -> None:
    async with asyncio.timeout(90):
        while not _holds(run, condition, step):
            await run.changed.wait()
            run.changed.clear()


def _holds(run: LocalRun, condition: str, step: int) -> bool:
    progress = run.job.status.progress
    if condition == "over":
        return run.over
    return progress is not None and (progress.checkpoint_step or 0) >= step


def a_rank_of(run: LocalRun, index: int) -> psutil.Process:
    """A training process: a child of the pod's launcher."""
    [pod] = [w for w in run.cache.workers(run.key) if w.index == index]
    members = family(MARK, pod.uid)
    pids = {p.pid for p in members}
    return next(p for p in members if p.ppid() in pids)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("undisturbed")

    async def train() -> None:
        async with local_run(job(), folder) as run:
            await until(run, "over")
            assert run.job.status.phase is Phase.SUCCEEDED

    asyncio.run(train())
    return losses(folder)


@pytest.mark.parametrize(("in_place", "last_pod"), [(True, "recovery-1-0"), (False, "recovery-2-0")])
async def test_a_killed_rank_costs_the_steps_since_the_checkpoint_and_nothing_else(
    tmp_path: Path, undisturbed: dict[int, float], in_place: bool, last_pod: str
) -> None:
    spec = job(in_place=in_place, checkpoint={"claim": {"size": "1Gi"}, "everySteps": 50, "async": False})
    async with local_run(spec, tmp_path) as run:
        await until(run, "checkpoint", 50)
        os.kill(a_rank_of(run, 1).pid, signal.SIGKILL)
        await until(run, "over")
        status = run.job.status
        assert (status.phase, status.attempt, status.restarts_counted) == (Phase.SUCCEEDED, 2, 1)
        assert status.pod_attempt == (1 if in_place else None)
        assert status.progress is not None
        assert status.progress.checkpoint_step == STEPS
        assert status.last_failure is not None
        assert (status.last_failure.rank, status.last_failure.reason) == (1, "SIGKILL")
    first = [json.loads(x) for x in (tmp_path / "pods" / last_pod / "log").read_text().splitlines() if x[0] == "{"]
    resumed = next(entry["resumedStep"] for entry in first if "resumedStep" in entry)
    assert resumed >= 50
    assert resumed % 50 == 0
    assert losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)


async def test_a_suspended_run_saves_and_goes_on_at_the_next_step(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    spec = job(checkpoint={"claim": {"size": "1Gi"}, "everySteps": 50, "async": False})
    async with local_run(spec, tmp_path) as run:
        await until(run, "checkpoint", 50)
        run.suspend()
        await until(run, "over")
        assert run.job.status.phase is Phase.SUSPENDED
    before = losses(tmp_path)
    async with local_run(spec, tmp_path) as run:
        await until(run, "over")
        assert run.job.status.phase is Phase.SUCCEEDED
    first = [json.loads(x) for x in (tmp_path / "pods/recovery-1-0/log").read_text().splitlines() if x[0] == "{"]
    resumed = next(entry["resumedStep"] for entry in first if "resumedStep" in entry)
    assert resumed == max(before)
    assert before | losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)
