"""Calls to launchers: outside of the reconcile loop, at once where something happened, seldom where nothing answers."""

import asyncio
from itertools import pairwise
from typing import Any

from tests.builders import NOW, TRAINER_IMAGE, make_job, make_pod, trainer_spec
from tests.support import clock, kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import ExitInfo, PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, TrainingJobStatus
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.manifests.revision import make_revision

TARPIT = 3.0
"""Seconds until a call to a silent launcher times out."""
END = ExitInfo(exit_code=1, message="boom", at=NOW)


class Backend(FakeClusterBackend):
    """Launchers of many jobs, some of which accept connections and say nothing."""

    def __init__(self) -> None:
        super().__init__(FakeCluster())
        self.states: dict[str, PodState] = {}
        self.silent: set[str] = set()
        self.calls: list[tuple[float, str, str]] = []
        self.statuses: dict[str, TrainingJobStatus] = {}
        self.defect = False
        self.restless = False
        """Each answer is another one."""

    async def _answer(self, kind: str, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        self.calls.append((asyncio.get_running_loop().time(), kind, worker.uid))
        if self.defect:
            raise ZeroDivisionError("a defect")
        if job.metadata.name in self.silent or worker.uid in self.silent:
            await asyncio.sleep(TARPIT)
            return None
        await asyncio.sleep(0.01)
        if self.restless:
            return PodState(attempt=1, exit_info=ExitInfo(exit_code=1, message=str(len(self.calls)), at=NOW))
        return self.states.get(worker.uid)

    async def get_launcher_state(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        return await self._answer("query", job, worker)

    async def start_attempt(self, job: TrainingJob, worker: WorkerPod, attempt: int) -> PodState | None:
        answer = await self._answer("start", job, worker)
        return answer and PodState(attempt=attempt)

    async def release(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        return await self._answer("release", job, worker)

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        self.statuses[job.metadata.name] = status
        version = str(int(job.metadata.resource_version) + 1)
        return job.replace(status=status, metadata=job.metadata.model_copy(update={"resource_version": version}))


class Operator:
    """A reconciler with running jobs whose pods have launchers."""

    def __init__(self) -> None:
        self.backend, self.cache, self.queue = Backend(), Cache(), WorkQueue[Key]()
        self.reconciler = Reconciler(self.cache, self.queue, self.backend, TRAINER_IMAGE, clock=lambda: NOW)
        self.version = 10

    def add(self, name: str, *, ready: bool = True, **status: Any) -> TrainingJob:
        condition = {"type": "Running", "status": "True", "reason": "r", "lastTransitionTime": kubelet.zulu(NOW)}
        status = {"attempt": 1, "conditions": [condition], "startTime": kubelet.zulu(NOW), **status}
        progress = {"attempt": 1, "step": 5, "updatedAt": kubelet.zulu(NOW)}
        policy = {"backoff": {"initialSeconds": 0}}
        job = make_job(
            name, uid=name, trainer=trainer_spec(), restartPolicy=policy, status={**status, "progress": progress}
        )
        revision = make_revision(job, TRAINER_IMAGE).name
        job = job.replace(status=job.status.replace(accepted_revision=revision))
        for index in range(2):
            self.backend.states[f"{name}-{index}"] = PodState(attempt=status["attempt"])
            self.set_ready(job, index, ready)
        self.queue.add(self.cache.put_job(job))
        return job

    def set_ready(self, job: TrainingJob, index: int, ready: bool) -> None:
        """Let the kubelet report whether a pod is ready, and the watch stream deliver it."""
        self.version += 1
        uid = f"{job.metadata.name}-{index}"
        pod = make_pod(job, index, status=kubelet.running(NOW, ready=ready), uid=uid, version=self.version)
        port = {"name": constants.LAUNCHER_PORT_NAME, "containerPort": launcher_protocol.LAUNCHER_PORT}
        pod["spec"]["containers"][0]["ports"].append(port)
        key = self.cache.put_pod(pod)
        assert key is not None
        self.queue.add(key)

    def fail(self, job: TrainingJob, index: int = 0) -> None:
        """Let the ranks in a pod fail."""
        self.backend.states[f"{job.metadata.name}-{index}"] = PodState(attempt=1, exit_info=END)
        self.set_ready(job, index, False)

    def calls(self, kind: str, uid: str) -> list[float]:
        return [at for at, k, u in self.backend.calls if (k, u) == (kind, uid)]


async def with_a_launcher_that_is_silent_for_long(operator: Operator) -> TrainingJob:
    """Add a job whose second pod is not ready and does not answer for ten minutes."""
    operator.backend.silent.add("job-1")
    job = operator.add("job")
    operator.set_ready(job, 1, False)
    await asyncio.sleep(600)
    return job


def run(scenario: Any) -> None:
    async def main() -> None:
        operator = Operator()
        task = asyncio.create_task(operator.reconciler.run())
        try:
            await scenario(operator)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    clock.run(main())


def test_a_pod_that_is_not_ready_any_more_is_queried_at_once_and_restarted() -> None:
    async def scenario(operator: Operator) -> None:
        job = operator.add("job")
        await asyncio.sleep(100)
        failed_at = asyncio.get_running_loop().time()
        operator.fail(job)
        await asyncio.sleep(0.2)
        assert operator.calls("query", "job-0") == [failed_at]
        status = operator.backend.statuses["job"]
        assert (status.attempt, status.pod_attempt_override) == (2, 1)
        assert operator.calls("start", "job-0")[0] - failed_at < 0.1, "it takes four answers of 10 ms"

    run(scenario)


def test_launchers_that_say_nothing_do_not_delay_other_jobs() -> None:
    async def scenario(operator: Operator) -> None:
        for number in range(1000):
            operator.backend.silent.add(f"silent-{number}")
            operator.add(f"silent-{number}", ready=False)
        job = operator.add("job")
        for _ in range(3):
            await asyncio.sleep(20)
            started = asyncio.get_running_loop().time()
            operator.backend.states = {uid: PodState(attempt=1) for uid in operator.backend.states}
            operator.fail(job)
            operator.backend.calls.clear()
            await asyncio.sleep(1)
            assert operator.calls("query", "job-0")[0] - started < 0.1

    run(scenario)


def test_a_silent_launcher_is_asked_less_and_less_often() -> None:
    async def scenario(operator: Operator) -> None:
        job = await with_a_launcher_that_is_silent_for_long(operator)
        asked = operator.calls("query", "job-1")
        waits = [round(b - a - TARPIT) for a, b in pairwise(asked)]
        assert waits[:7] == [1, 2, 4, 8, 16, 32, 60]
        assert [w.launcher_silent for w in operator.cache.workers(("default", "job"))] == [False, True]
        # Once it is ready its launcher answers: a failure is noticed at once again.
        operator.backend.silent.clear()
        operator.set_ready(job, 1, True)
        await asyncio.sleep(0.1)
        operator.backend.calls.clear()
        operator.fail(job, 1)
        await asyncio.sleep(0.1)
        assert operator.calls("query", "job-1")

    run(scenario)


def test_a_change_of_a_pod_is_no_reason_to_query_a_silent_launcher_at_once() -> None:
    async def scenario(operator: Operator) -> None:
        job = await with_a_launcher_that_is_silent_for_long(operator)
        before = len(operator.calls("query", "job-1"))
        for _ in range(20):
            operator.set_ready(job, 1, False)
            await asyncio.sleep(0.1)
        assert len(operator.calls("query", "job-1")) <= before + 1

    run(scenario)


def test_nothing_is_decided_before_a_new_operator_has_asked_what_runs_in_the_pods() -> None:
    async def scenario(operator: Operator) -> None:
        operator.add("job", attempt=3, podAttemptOverride=1, conditions=[])
        await asyncio.sleep(0.5)
        assert [kind for _, kind, _ in operator.backend.calls] == ["query", "query"], "no attempt is started again"
        assert operator.backend.statuses["job"].is_true(ConditionType.RUNNING)

    run(scenario)


def test_a_silent_launcher_delays_only_the_first_plan_of_its_own_job() -> None:
    async def scenario(operator: Operator) -> None:
        operator.backend.silent.add("job")
        operator.add("job", ready=False)
        await asyncio.sleep(TARPIT + 0.1)
        assert "job" in operator.backend.statuses

    run(scenario)


def test_an_answer_that_a_request_has_overtaken_is_dropped() -> None:
    async def scenario(operator: Operator) -> None:
        job = operator.add("job")
        await asyncio.sleep(1)
        operator.fail(job)
        await asyncio.sleep(0.5)
        entry = operator.cache.get(("default", "job"))
        assert entry is not None
        assert entry.launcher_states["job-0"].attempt == 2
        operator.set_ready(job, 0, False)  # its launcher is queried again, and still answers as before
        await asyncio.sleep(0.5)
        assert entry.launcher_states["job-0"].attempt == 2

    run(scenario)


def test_a_launcher_that_always_answers_something_else_causes_few_requests() -> None:
    """A finished job requests that the pod exits, and each answer is a reason to look at the job again."""

    async def scenario(operator: Operator) -> None:
        operator.backend.restless = True
        failed = {"type": "Failed", "status": "True", "reason": "r", "lastTransitionTime": kubelet.zulu(NOW)}
        operator.add("job", ready=False, conditions=[failed])
        await asyncio.sleep(60)
        assert 2 <= len(operator.calls("release", "job-0")) <= 7, "after 0, 1, 3, 7, 15, 31 s"
        assert len(operator.calls("query", "job-0")) <= 61

    run(scenario)


def test_a_defect_in_a_call_counts_as_silence(caplog: Any) -> None:
    async def scenario(operator: Operator) -> None:
        operator.backend.defect = True
        operator.add("job", ready=False)
        await asyncio.sleep(30)
        assert "job" in operator.backend.statuses
        assert len(operator.calls("query", "job-0")) <= 6

    run(scenario)
    assert "default/job: unexpected error in a call to a launcher" in caplog.text


def test_pods_that_are_gone_leave_nothing_behind() -> None:
    async def scenario(operator: Operator) -> None:
        job = operator.add("job", ready=False)
        await asyncio.sleep(5)
        entry = operator.cache.get(("default", "job"))
        assert entry is not None
        assert len(entry.launcher_schedules) == len(entry.launcher_states) == 2
        for index in range(2):
            operator.cache.remove_pod(make_pod(job, index, uid=f"job-{index}"))
        await asyncio.sleep(5)
        assert (entry.launcher_schedules, entry.launcher_states) == ({}, {})

    run(scenario)
