"""Jobs on this machine: the operator's loop on real processes, with shell commands for programs."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil

from tests.builders import make_job
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase, Reason
from trainyard_cli.local import LocalRun, local_run
from trainyard_operator.lifecycle.observation import WorkerState
from trainyard_operator.local.backend import POD_UID_VARIABLE
from trainyard_operator.local.process_tree import process_tree


def shell_job(script: str, *, replicas: int = 2, limit: int = 0, **spec: Any) -> TrainingJob:
    policy = {"maxRestarts": limit, "backoff": {"initialSeconds": 0}}
    command = ["sh", "-c", script]
    return make_job("local", replicas=replicas, image="none", command=command, restartPolicy=policy, **spec)


async def to_the_end(run: LocalRun) -> TrainingJob:
    async with asyncio.timeout(30):
        while not run.finished:
            await run.changed.wait()
            run.changed.clear()
    return run.job


async def until_running(run: LocalRun) -> None:
    async with asyncio.timeout(30):
        while run.job.status.phase is not Phase.RUNNING:
            await run.changed.wait()
            run.changed.clear()


async def finish(job: TrainingJob, folder: Path) -> tuple[TrainingJob, LocalRun]:
    async with local_run(job, folder) as run:
        return await to_the_end(run), run


def uids(run: LocalRun) -> list[str]:
    return [w.uid for w in run.cache.workers(run.key)]


def alive(pods: list[str]) -> list[psutil.Process]:
    """Return the processes of pods, including those that have left the process tree."""
    return [process for uid in pods for process in process_tree(POD_UID_VARIABLE, uid)]


async def test_force_kills_processes_that_ignore_signals_at_once(tmp_path: Path) -> None:
    async with local_run(shell_job("trap '' TERM; sleep 600 & while true; do wait; done"), tmp_path) as run:
        await until_running(run)
        pods = uids(run)
        run.suspend()
        async with asyncio.timeout(15):  # half the grace period
            await run.backend.delete_pods(run.job, run.cache.workers(run.key), force=True)
            while not run.finished:
                await run.changed.wait()
                run.changed.clear()
        assert alive(pods) == []


async def test_pods_beyond_the_capacity_wait_and_start_in_order(tmp_path: Path) -> None:
    script = "while [ ! -e $FOLDER/go ]; do sleep 0.05; done"
    job = shell_job(script, replicas=3, env=[{"name": "FOLDER", "value": str(tmp_path)}])
    async with local_run(job, tmp_path, capacity=1) as run, asyncio.timeout(30):

        async def until(running: int, reason: Reason) -> None:
            def holds() -> bool:
                condition = run.job.status.condition(ConditionType.RUNNING)
                counts = run.job.status.workers
                return condition is not None and condition.reason == reason and counts.running == running

            while not holds():
                await run.changed.wait()
                run.changed.clear()

        await until(1, Reason.UNSCHEDULABLE)
        condition = run.job.status.condition(ConditionType.RUNNING)
        assert condition is not None
        assert condition.message.startswith(
            "2 of 3 workers: pod local-1-1: cannot be scheduled: this machine runs at most 1 pods"
        )
        run.backend.capacity = 2
        await until(2, Reason.UNSCHEDULABLE)
        assert {w.index for w in run.cache.workers(run.key) if w.state is WorkerState.RUNNING} == {0, 1}
        run.backend.capacity = None
        await until(3, Reason.ALL_WORKERS_RUNNING)
        (tmp_path / "go").touch()
        await to_the_end(run)
    assert run.job.status.phase is Phase.SUCCEEDED


async def test_a_pending_pod_is_removed_with_its_job(tmp_path: Path) -> None:
    async with local_run(shell_job("sleep 60"), tmp_path, capacity=0) as run, asyncio.timeout(30):
        while len(run.cache.workers(run.key)) < 2:
            await run.changed.wait()
            run.changed.clear()
        run.suspend()
        await to_the_end(run)
        assert run.cache.workers(run.key) == ()


async def test_each_worker_gets_the_rendezvous_variables(tmp_path: Path) -> None:
    script = "echo $RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $PET_NODE_RANK $PET_NNODES $PET_MASTER_PORT"
    job, run = await finish(shell_job(script), tmp_path)
    assert job.status.phase is Phase.SUCCEEDED
    lines = [run.backend.log_file(job.pod_name(1, i)).read_text().split() for i in range(2)]
    port = lines[0][3]
    assert lines == [[str(i), "2", "127.0.0.1", port, str(i), "2", port] for i in range(2)]
    assert job.status.workers.succeeded == 2


async def test_a_failure_ends_the_group_and_is_reported(tmp_path: Path) -> None:
    script = "if [ $RANK = 1 ]; then echo out of luck; exit 3; fi; sleep 60"
    job, run = await finish(shell_job(script), tmp_path)
    assert job.status.phase is Phase.FAILED
    failure = job.status.last_failure
    assert failure is not None
    assert (failure.pod, failure.exit_code, failure.message) == ("local-1-1", 3, "out of luck")
    assert not alive(uids(run))


async def test_a_restarted_group_gets_new_processes_and_a_new_port(tmp_path: Path) -> None:
    script = "[ $TRAINYARD_ATTEMPT = 2 ] && { echo $MASTER_PORT; exit 0; }; [ $RANK = 0 ] && exit 1; sleep 60"
    job, run = await finish(shell_job(script, limit=1), tmp_path)
    assert job.status.phase is Phase.SUCCEEDED
    assert (job.status.attempt, job.status.restarts, job.status.restarts_counted) == (2, 1, 1)
    ports = {run.backend.log_file(job.pod_name(2, i)).read_text().strip() for i in range(2)}
    assert len(ports) == 1
    assert not run.cache.workers(run.key)[0].name.startswith("local-1-")


async def test_a_program_that_does_not_exist_fails_with_its_name(tmp_path: Path) -> None:
    job = make_job("local", image="none", command=["no-such-program"], restartPolicy={"maxRestarts": 0})
    ended, _ = await finish(job, tmp_path)
    assert ended.status.phase is Phase.FAILED
    assert ended.status.last_failure is not None
    assert ended.status.last_failure.reason == "StartError"
    assert ended.status.last_failure.message == "no-such-program: No such file or directory"


async def test_processes_that_left_their_session_are_killed_with_their_pod(tmp_path: Path) -> None:
    """Workers of torchrun lead sessions of their own, and survive when it is killed."""
    script = "setsid sleep 61 & setsid sh -c 'sleep 62 & wait' & kill -9 $$$$"  # $$$$: the kubelet makes $$ of it
    job, run = await finish(shell_job(script), tmp_path)
    assert job.status.phase is Phase.FAILED
    assert job.status.last_failure is not None
    assert job.status.last_failure.exit_code == 128 + signal.SIGKILL
    assert not alive(uids(run))


async def test_suspending_ends_all_processes_gracefully(tmp_path: Path) -> None:
    async with local_run(shell_job("trap 'echo bye; exit 0' TERM; sleep 60 & wait"), tmp_path) as run:
        await until_running(run)
        logs = [run.backend.log_file(run.job.pod_name(1, i)) for i in range(2)]
        os.kill(os.getpid(), signal.SIGINT)
        job = await to_the_end(run)
        assert job.status.phase is Phase.SUSPENDED
        assert not run.cache.workers(run.key)
        assert [log.read_text() for log in logs] == ["bye\n", "bye\n"]


async def test_leaving_the_context_kills_all_processes(tmp_path: Path) -> None:
    async with local_run(shell_job("sleep 60"), tmp_path) as run:
        await until_running(run)
        pods = uids(run)
        assert len(alive(pods)) >= 2
    assert not alive(pods)


async def test_a_value_from_a_secret_is_refused_with_its_name(tmp_path: Path) -> None:
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    async with local_run(shell_job("true", env=[secret]), tmp_path) as run:

        def refused() -> bool:
            running = run.job.status.condition(ConditionType.RUNNING)
            return running is not None and running.reason == Reason.PODS_REFUSED

        async with asyncio.timeout(10):
            while not refused():
                await run.changed.wait()
                run.changed.clear()
        running = run.job.status.condition(ConditionType.RUNNING)
        assert running is not None
        assert running.message.startswith("spec.env TOKEN: valueFrom needs a cluster")


async def test_references_to_variables_are_replaced_as_on_a_cluster(tmp_path: Path) -> None:
    env = [
        {"name": "FIRST", "value": "$(PET_MASTER_ADDR)-$(LAST)-$$(FIRST)-$(HOME)"},
        {"name": "LAST", "value": "[$(FIRST)]"},
    ]
    job = make_job("local", replicas=1, command=["echo", "$(LAST)", "$(RANK)"], args=["$(MASTER_ADDR)", "$x"], env=env)
    ended, run = await finish(job, tmp_path)
    assert ended.status.phase is Phase.SUCCEEDED
    expected = "[127.0.0.1-$(LAST)-$(FIRST)-$(HOME)] 0 127.0.0.1 $x"
    assert run.backend.log_file("local-1-0").read_text().strip() == expected


async def test_fields_of_the_pod_are_set_as_on_a_cluster(tmp_path: Path) -> None:
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    job, run = await finish(shell_job("echo $POD", replicas=1, env=env), tmp_path)
    assert run.backend.log_file("local-1-0").read_text() == "local-1-0\n"
    assert job.status.phase is Phase.SUCCEEDED
