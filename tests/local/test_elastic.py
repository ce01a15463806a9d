"""Groups that change their size during a run: by missing and by free capacity, and by `kubectl scale`.

How many steps a machine makes meanwhile is its own affair. So no run here comes to its last step: it is suspended, and
a run that was left alone makes as many.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.local import PATIENCE, losses, reports, small_job, until_over, until_step
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase
from trainyard_cli.local import LocalRun, local_run

BATCH = 8
CHECKPOINT = {"claim": {"size": "1Gi"}, "everySteps": 100_000, "async": False}
"""None in time: what is there has been saved on purpose."""


def job(replicas: int, **spec: Any) -> TrainingJob:
    """Micro-batches of one, so that the other run need not make thousands of steps.

    And one thread each: on a busy machine two of them wait for each other again and again, seconds in every step.
    """
    threads = {"name": "OMP_NUM_THREADS", "value": "1"}
    small = small_job("elastic", 100_000, replicas=replicas, checkpoint=CHECKPOINT, env=[threads], **spec)
    assert small.spec.trainer is not None
    batch = small.spec.trainer.batch.replace(micro=1)
    return small.replace(spec=small.spec.replace(trainer=small.spec.trainer.replace(batch=batch)))


class Reference:
    """A run with two workers that nothing happens to, as far as it has been needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._losses: dict[int, float] = {}

    async def losses(self, last: int) -> dict[int, float]:
        """Up to a step."""
        if last not in self._losses:
            async with local_run(job(2), self._folder) as run:
                await until_step(run, last)
                await suspend(run)
            self._losses |= losses(self._folder)
        return {step: loss for step, loss in self._losses.items() if step <= last}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


async def suspend(run: LocalRun) -> None:
    run.suspend()
    await until_over(run)
    assert run.job.status.phase is Phase.SUSPENDED


def scale(run: LocalRun, replicas: int) -> None:
    """As `kubectl scale` does it."""
    run.edit(run.job.with_replicas(replicas).spec)


async def until_steps_of(run: LocalRun, attempt: int) -> None:
    """Wait until an attempt has made some steps, as the status has it."""

    def made() -> int:
        progress = run.job.status.progress
        return progress.steps_made if progress and progress.attempt == attempt else 0

    async with asyncio.timeout(PATIENCE):
        while made() < 20:
            await run.changed.wait()
            run.changed.clear()


def sizes(folder: Path) -> list[int]:
    """Return the number of ranks of each attempt that started to train, in order."""
    return [entry["worldSize"] for entry in reports(folder) if "worldSize" in entry]


async def assert_undisturbed(folder: Path, reference: Reference) -> None:
    """Each step was made once, with the samples of a run that was left alone."""
    steps = [entry["step"] for entry in reports(folder) if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    assert losses(folder) == pytest.approx(await reference.losses(len(steps)), rel=1e-4)
    manifest = json.loads((folder / "checkpoints" / f"step-{len(steps):08d}" / "manifest.json").read_text())
    assert manifest["samples"] == len(steps) * BATCH


async def test_a_group_without_capacity_trains_with_fewer_workers_and_grows_again(
    tmp_path: Path, reference: Reference
) -> None:
    elastic = {"minReplicas": 1, "resizeAfterSeconds": 1}
    async with local_run(job(2, elastic=elastic), tmp_path, capacity=1) as run:
        await until_steps_of(run, 2)
        status = run.job.status
        assert (status.attempt, status.workers.desired, status.workers.running) == (2, 1, 1)
        degraded = status.condition(ConditionType.DEGRADED)
        assert degraded is not None
        assert (degraded.status, degraded.reason, degraded.message) == ("True", "Resized", "1 of 2 workers")
        run.backend.capacity = 2
        await until_steps_of(run, 3)
        status = run.job.status
        assert (status.attempt, status.workers.running, status.restarts_counted) == (3, 2, 0)
        assert not status.is_true(ConditionType.DEGRADED)
        assert [(e.type, e.message.partition(";")[0]) for e in run.events if e.reason == "Resized"] == [
            ("Warning", "1 of 2 pods were unschedulable for 1 s (spec.elastic.resizeAfterSeconds)"),
            ("Normal", "there is capacity for 2 of 2 workers"),
        ]
        await suspend(run)
    assert sizes(tmp_path) == [1, 2]
    await assert_undisturbed(tmp_path, reference)


async def test_a_group_with_a_parameter_server_is_scaled_in_mid_run(tmp_path: Path, reference: Reference) -> None:
    async with local_run(job(2, parallelism={"data": {"mode": "parameterServer"}}), tmp_path) as run:
        await until_steps_of(run, 1)
        scale(run, 1)
        await until_steps_of(run, 2)
        assert (run.job.status.attempt, run.job.status.restarts_counted) == (2, 0)
        await suspend(run)
    assert sizes(tmp_path) == [2, 1]
    await assert_undisturbed(tmp_path, reference)
