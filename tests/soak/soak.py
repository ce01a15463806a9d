"""Runs with random faults: each must succeed with the losses of an undisturbed run.

Faults occur at any moment, also during a recovery. The losses of all steps are equal only if no sample was repeated or
skipped, and no state was lost.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.local import losses, processes, small_job, until_over, until_step, worker_of
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Phase
from trainyard_cli.local import LocalRun, local_run
from trainyard_operator.local.backend import POD_UID_VARIABLE
from trainyard_operator.local.process_tree import process_tree

STEPS = 400
PAUSE = 5.0
"""Longest pause between two faults, in seconds."""
HANG = 10
"""Seconds: spec.health.hangTimeoutSeconds. The first save in the background waits for a process that imports torch, and
the second one waits for the first."""
FAULTS_PER_RUN = 8


def soak_job(name: str, *, background: bool) -> TrainingJob:
    checkpoint = {"claim": {"size": "1Gi"}, "everySteps": 20, "async": background}
    return small_job(
        name, STEPS, policy={"maxRestarts": 1000}, checkpoint=checkpoint, health={"hangTimeoutSeconds": HANG}
    )


# --- faults ---------------------------------------------------------------------------------------------------


def kill_rank(run: LocalRun, index: int) -> bool:
    return _signal(processes(run, index)[1], signal.SIGKILL)


def stop_rank(run: LocalRun, index: int) -> bool:
    """Make a rank hang."""
    return _signal(processes(run, index)[1], signal.SIGSTOP)


def kill_launcher(run: LocalRun, index: int) -> bool:
    return _signal(processes(run, index)[0], signal.SIGKILL)


def kill_pod(run: LocalRun, index: int) -> bool:
    launchers, ranks = processes(run, index)
    return _signal(ranks + launchers, signal.SIGKILL)


def delete_pod(run: LocalRun, index: int) -> bool:
    """Delete a pod as kubectl does: it is told to stop, and saves."""
    worker = worker_of(run, index)
    if worker is None or worker.terminating:
        return False
    asyncio.get_running_loop().create_task(run.backend.delete_pods(run.job, [worker]))
    return True


def truncate_newest_checkpoint(run: LocalRun, index: int) -> bool:
    """Damage the newest checkpoint, and kill a rank, so that the checkpoint is needed."""
    newest = max((run.folder / "checkpoints").glob("step-*[0-9]"), default=None)
    shards = sorted(newest.glob("*.distcp")) if newest is not None else []
    if len(list((run.folder / "checkpoints").glob("step-*[0-9]"))) < 2 or not shards:
        return False  # the run would have to start over
    with suppress(OSError):  # it may have been removed because newer ones exist
        os.truncate(shards[-1], shards[-1].stat().st_size // 2)
    return kill_rank(run, index)


def suspend_and_resume(run: LocalRun, index: int) -> bool:
    run.suspend()
    asyncio.get_running_loop().call_later(random.Random(index).uniform(0, 3), _resume, run)
    return True


def _resume(run: LocalRun) -> None:
    run.edit(run.job.spec.replace(suspend=False))


def _signal(targets: list[psutil.Process], number: signal.Signals) -> bool:
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return bool(targets)


FAULTS: tuple[Callable[[LocalRun, int], bool], ...] = (
    kill_rank,
    stop_rank,
    kill_launcher,
    kill_pod,
    delete_pod,
    truncate_newest_checkpoint,
    suspend_and_resume,
)


# --- the soak test -------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Runs, attempts and faults so far."""

    runs: int = 0
    attempts: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return f"{self.runs} runs, {self.attempts} attempts, {self.faults.total()} faults: {faults}"


def undisturbed(folder: Path) -> dict[int, float]:
    """Return the losses of a run without faults."""

    async def train() -> None:
        async with local_run(soak_job("undisturbed", background=False), folder) as run:
            await until_over(run)
            assert run.job.status.phase is Phase.SUCCEEDED, run.job.status.last_failure

    asyncio.run(train())
    found = losses(folder)
    assert len(found) == STEPS
    return found


def soak(seconds: float, seed: int, folder: Path, say: Callable[[str], None]) -> Tally:
    """Inject faults into one run after another until the time is up; a run that has begun is finished.

    Raises:
        AssertionError: a run has not succeeded, or its losses differ from those of an undisturbed run.
    """
    tally, generator = Tally(), random.Random(seed)
    expected = undisturbed(folder / "undisturbed")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tally.runs += 1
        where = folder / f"run-{tally.runs}"
        faults = asyncio.run(_run_with_faults(where, generator, end, tally))
        found = losses(where)
        assert found.keys() == expected.keys(), f"{where}: steps are missing after {faults}"
        assert found == pytest.approx(expected, rel=1e-4), f"{where}: other losses after {faults}"
        say(f"run {tally.runs}: {' '.join(faults)}")
    return tally


async def _run_with_faults(folder: Path, generator: random.Random, end: float, tally: Tally) -> list[str]:
    done: list[str] = []
    async with local_run(soak_job(folder.name, background=generator.random() < 0.5), folder) as run:
        await until_step(run, 1)
        for pause in _pauses(generator, end):
            await asyncio.sleep(pause)
            if run.job.status.finished:
                break
            fault, index = generator.choice(FAULTS), generator.randrange(2)
            if fault(run, index):
                done.append(f"{fault.__name__}({index})")
                tally.faults[fault.__name__] += 1
        run.interrupted = False
        _resume(run)
        await until_over(run, 180)
        status, uids = run.job.status, [w.uid for w in run.cache.workers(run.key)]
        assert status.phase is Phase.SUCCEEDED, f"{folder}: {status.last_failure} after {done}"
        assert status.goodput is not None
        tally.attempts += status.attempt
    assert not [p for uid in uids for p in process_tree(POD_UID_VARIABLE, uid)], (
        f"{folder}: processes are left after {done}"
    )
    return done


def _pauses(generator: random.Random, end: float) -> Iterator[float]:
    for _ in range(FAULTS_PER_RUN):
        if time.monotonic() < end:
            yield generator.uniform(0, PAUSE)
