"""A program of one's own that is restarted inside its pods."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.builders import make_job
from tests.support.local import until_over, worker_of
from trainyard.protocol import constants, launcher
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase
from trainyard_cli.local import LocalRun, local_run
from trainyard_operator.local.backend import POD_UID_VARIABLE
from trainyard_operator.local.process_tree import process_tree

PROGRAM = """
import os, subprocess, sys, time
attempt, rank, port = (os.environ[n] for n in ("TRAINYARD_ATTEMPT", "RANK", "MASTER_PORT"))
assert "TRAINYARD_TOKEN" not in os.environ
child = subprocess.Popen(["sleep", "1000"]) if attempt == "1" else None
print("attempt", attempt, "rank", rank, "port", port, "pid", os.getpid(), flush=True)
while attempt == "1":
    time.sleep(0.1)
"""


def job(in_place: bool) -> TrainingJob:
    policy = {"backoff": {"initialSeconds": 0}, "inPlace": in_place}
    return make_job("own", command=[sys.executable, "-c", PROGRAM], restartPolicy=policy)


def said(run: LocalRun, pod: str) -> list[list[str]]:
    log = run.backend.log_file(pod)
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def short_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is long enough: pods are other processes, so they learn it from the file itself."""
    text = Path(launcher.__file__).read_text()
    folder = Path(launcher.__file__).parent
    for name in constants.LAUNCHER_FILES:
        (tmp_path / name).write_text((folder / name).read_text())
    changed = text.replace("MIN_ATTEMPT_SECONDS = 30.0", "MIN_ATTEMPT_SECONDS = 0.5")
    assert changed != text
    (tmp_path / "launcher.py").write_text(changed)
    monkeypatch.setattr("trainyard_operator.manifests.children.files", lambda _: tmp_path)


def has_begun(run: LocalRun) -> bool:
    workers = [worker_of(run, index) for index in range(2)]
    return all(worker and worker.ready and said(run, worker.name) for worker in workers)


@pytest.mark.usefixtures("short_attempts")
async def test_the_program_of_each_pod_is_started_again_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    async with local_run(job(in_place=True), tmp_path) as run:
        async with asyncio.timeout(60):
            while not has_begun(run):  # noqa: ASYNC110 (a log says nothing when it grows)
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.6)
        (_, _, _, rank, _, port, _, pid) = said(run, "own-1-1")[0]
        os.kill(int(pid), signal.SIGKILL)
        uids = [w.uid for i in range(2) if (w := worker_of(run, i))]
        await until_over(run)
        status = run.job.status
        assert (status.phase, status.attempt, status.pod_attempt_override, rank) == (Phase.SUCCEEDED, 2, 1, "1")
        assert status.last_failure is not None
        assert (status.last_failure.pod, status.last_failure.exit_code) == ("own-1-1", 137)
        again = [said(run, f"own-1-{i}")[1] for i in range(2)]
        assert [(words[1], words[3], int(words[5]) - int(port)) for words in again] == [("2", "0", 1), ("2", "1", 1)]
    assert not [p for uid in uids for p in process_tree(POD_UID_VARIABLE, uid)]


async def test_a_program_that_fails_at_once_gets_new_pods(tmp_path: Path) -> None:
    failing = job(in_place=True)
    failing = failing.replace(spec=failing.spec.replace(command=("false",)))
    async with local_run(failing, tmp_path) as run:
        await until_over(run)
        status = run.job.status
        assert (status.phase, status.attempt, status.pod_attempt_override) == (Phase.FAILED, 4, None)
        assert status.last_failure is not None
        assert status.last_failure.exit_code == 1


async def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    missing = job(in_place=True)
    missing = missing.replace(spec=missing.spec.replace(command=("no-such-command",)))
    async with local_run(missing, tmp_path) as run:
        await until_over(run)
        assert run.job.status.last_failure is not None
        assert run.job.status.last_failure.exit_code == 127
        assert "no-such-command: No such file or directory" in run.job.status.last_failure.message


BAD_SAMPLE = """
import os
import torch.distributed as dist
dist.init_process_group("gloo")
if os.environ["RANK"] == "1":
    raise ValueError("bad sample 17")
dist.barrier()
"""


@pytest.mark.usefixtures("short_attempts")
@pytest.mark.parametrize("in_place", [False, True])
async def test_a_failure_under_torchrun_is_named_with_exception_and_rank(tmp_path: Path, in_place: bool) -> None:
    (tmp_path / "train.py").write_text(BAD_SAMPLE)
    policy = {
        "maxRestarts": 3,
        "backoff": {"initialSeconds": 0},
        "inPlace": in_place,
        "rules": [{"onReasons": ["ValueError"], "action": "Fail"}],
    }
    command = ["torchrun", str(tmp_path / "train.py")]
    workers = {"replicas": 1, "procsPerWorker": 2}
    own = make_job("own", command=command, workers=workers, restartPolicy=policy)
    async with local_run(own, tmp_path / "run") as run:
        await until_over(run)
        status = run.job.status
        log = run.backend.log_file("own-1-0").read_text()
    assert (status.phase, status.attempt) == (Phase.FAILED, 1)
    failure = status.last_failure
    assert failure is not None
    assert (failure.pod, failure.reason, failure.message) == ("own-1-0", "ValueError", "bad sample 17")
    assert (failure.rank, failure.exit_code) == (1, 1)
    # The launcher passes on what its processes write.
    assert "[rank1]: ValueError: bad sample 17" in log
    assert "Root Cause (first observed failure):" in log


@pytest.mark.usefixtures("short_attempts")
async def test_a_launcher_names_what_a_program_in_its_pod_has_said_last(tmp_path: Path) -> None:
    """Output of both streams is copied, also if it is more than a pipe holds; the exception stands before noise."""
    program = "import sys, time; time.sleep(1); print('x' * 300_000); sys.stdout.flush(); raise KeyError('a' * 30)"
    own = make_job(
        "own", replicas=1, command=[sys.executable, "-c", program], restartPolicy={"maxRestarts": 0, "inPlace": True}
    )
    async with local_run(own, tmp_path) as run:
        await until_over(run)
        failure = run.job.status.last_failure
        log = run.backend.log_file("own-1-0").read_text()
    assert failure is not None
    assert (failure.reason, failure.message) == ("KeyError", repr("a" * 30))
    assert log.count("x") >= 300_000
    assert "Traceback" in log


REPORTING = """
import time
from trainyard.reporter import Reporter
reporter = Reporter(total_steps=1000)
for step in range(1000):
    time.sleep(0.02)
    reporter.step(tokens=64, loss=1 / (step + 1))
"""


async def test_a_program_that_reports_has_its_step_and_loss_in_the_status(tmp_path: Path) -> None:
    job = make_job("own", command=[sys.executable, "-c", REPORTING], metrics={})
    async with local_run(job, tmp_path) as run:
        async with asyncio.timeout(60):
            while run.job.status.progress is None:
                await run.changed.wait()
                run.changed.clear()
        status = run.job.status
        assert status.progress is not None
        assert status.progress.attempt == 1
        assert 0 < status.progress.step < 1000
        assert status.progress.loss == pytest.approx(1 / status.progress.step, rel=0.1)
        assert status.is_true(ConditionType.PROGRESSING)
        run.suspend()
        await until_over(run, 60)


FINISHING = """
import os
from trainyard.reporter import Reporter
os.chdir("/")
open(os.path.join(os.environ["TRAINYARD_CHECKPOINTS"], "model"), "w").close()
reporter = Reporter(total_steps=1000)
for step in range(1000):
    reporter.step(samples=64, loss=1 / (step + 1))
reporter.saved(1000)
"""


async def test_final_figures_and_checkpoints_of_a_program_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are done between two readings of the page, and the folder of the run is given as a relative path."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", FINISHING]
    own = make_job("own", replicas=1, command=command, metrics={}, checkpoint={"claim": {"size": "1Gi"}})
    async with local_run(own, Path("run")) as run:
        await until_over(run)
        status = run.job.status
    assert status.phase is Phase.SUCCEEDED, status.last_failure
    assert status.progress is not None
    assert (status.progress.step, status.progress.total_steps, status.progress.loss) == (1000, 1000, 0.001)
    assert status.progress.checkpoint_step == 1000
    assert (tmp_path / "run" / "checkpoints" / "model").exists()
