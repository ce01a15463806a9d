"""A run that loses a rank, or is suspended, resumes from its checkpoint with the losses of an undisturbed run."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.local import losses, processes, reports, small_job, until_over, until_step
from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Phase
from trainyard_cli.local import local_run

STEPS = 300


def job(*, in_place: bool = True, **spec: Any) -> TrainingJob:
    return small_job("recovery", STEPS, policy={"inPlace": in_place}, **spec)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("undisturbed")

    async def train() -> None:
        async with local_run(job(), folder) as run:
            await until_over(run)
            assert run.job.status.phase is Phase.SUCCEEDED

    asyncio.run(train())
    return losses(folder)


@pytest.mark.parametrize(("in_place", "last_pod"), [(True, "recovery-1-0"), (False, "recovery-2-0")])
async def test_a_killed_rank_costs_only_the_steps_since_the_checkpoint(
    tmp_path: Path, undisturbed: dict[int, float], in_place: bool, last_pod: str
) -> None:
    spec = job(in_place=in_place, checkpoint={"claim": {"size": "1Gi"}, "everySteps": 50, "async": False})
    async with local_run(spec, tmp_path) as run:
        await until_step(run, 50, saved=True)
        os.kill(processes(run, 1)[1][0].pid, signal.SIGKILL)
        await until_over(run)
        status = run.job.status
        assert (status.phase, status.attempt, status.restarts_counted) == (Phase.SUCCEEDED, 2, 1)
        assert status.pod_attempt_override == (1 if in_place else None)
        assert status.progress is not None
        assert status.progress.checkpoint_step == STEPS
        assert status.last_failure is not None
        assert (status.last_failure.rank, status.last_failure.reason) == (1, "SIGKILL")
    resumed = next(entry["resumedStep"] for entry in reports(tmp_path) if "resumedStep" in entry)
    assert resumed >= 50
    assert resumed % 50 == 0
    assert losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)


async def test_a_run_that_diverges_fails_with_the_reason(tmp_path: Path) -> None:
    """With a learning rate far too high the gradient soon is NaN on all ranks, and stays so."""
    spec = job(health={"badSteps": {"limit": 3}})
    trainer = spec.spec.trainer
    assert trainer is not None
    diverging = trainer.replace(optimizer=trainer.optimizer.replace(learning_rate=100.0, weight_decay=10.0))
    policy = spec.spec.restart_policy.replace(max_restarts=0)
    spec = spec.replace(spec=spec.spec.replace(trainer=diverging, restart_policy=policy))
    async with local_run(spec, tmp_path) as run:
        await until_over(run)
        status = run.job.status
    assert status.phase is Phase.FAILED
    failure = status.last_failure
    assert failure is not None
    assert (failure.reason, failure.exit_code) == ("BadSteps", constants.EXIT_BAD_STEPS)
    # How many steps have a finite gradient depends on rounding. Two bad ones are reported, the third one fails.
    finite = ["gradNorm" in entry for entry in reports(tmp_path) if "loss" in entry]
    good = finite.count(True)
    assert finite == [True] * good + [False] * 2
    assert 1 <= good < 10
    assert failure.step == good + 3
    assert failure.message.startswith(f"step {good + 3}: the norm of the gradient is nan (3 in a row, limit 3)")
    assert list(losses(tmp_path)) == list(range(1, good + 3))


async def test_a_suspended_run_saves_and_resumes_at_the_next_step(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    spec = job(checkpoint={"claim": {"size": "1Gi"}, "everySteps": 50, "async": False})
    async with local_run(spec, tmp_path) as run:
        await until_step(run, 50, saved=True)
        run.suspend()
        await until_over(run)
        assert run.job.status.phase is Phase.SUSPENDED
    before = losses(tmp_path)
    async with local_run(spec, tmp_path) as run:
        await until_over(run)
        assert run.job.status.phase is Phase.SUCCEEDED
    resumed = next(entry["resumedStep"] for entry in reports(tmp_path) if "resumedStep" in entry)
    assert resumed == max(before)
    assert before | losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)
