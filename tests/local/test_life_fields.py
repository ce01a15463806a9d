"""The fields that bound the life of a job, without a cluster."""

import sys
from pathlib import Path

from tests.builders import make_job
from tests.support.local import until_over
from trainyard.resource.status import ConditionType, Phase
from trainyard_cli.local import local_run

RANK_ZERO_ENDS = "import os, time; time.sleep(0 if os.environ['RANK'] == '0' else 1000)"


async def test_the_command_manages_a_job_whose_manager_on_a_cluster_is_another_one(tmp_path: Path) -> None:
    """It ends when rank 0 has succeeded, with all that runs, and a limit of its life on a cluster changes nothing."""
    job = make_job(
        "own",
        command=[sys.executable, "-c", RANK_ZERO_ENDS],
        successPolicy="RankZero",
        managedBy="example.com/other",
        ttlSecondsAfterFinished=0,
        cleanPodPolicy="All",
    )
    async with local_run(job, tmp_path) as run:
        await until_over(run)
        status, pods = run.job.status, run.cache.workers(run.key)
    assert status.phase is Phase.SUCCEEDED
    assert pods == ()


async def test_a_run_ends_at_its_deadline(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import time; time.sleep(1000)"]
    async with local_run(make_job("own", command=program, activeDeadlineSeconds=1), tmp_path) as run:
        await until_over(run)
        failed = run.job.status.condition(ConditionType.FAILED)
    assert failed is not None
    assert failed.reason == "DeadlineExceeded"
