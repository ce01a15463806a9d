"""The reconcile loop: what it does in which order, and what each error leads to."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.builders import TRAINER_IMAGE, make_job, make_pod, make_worker, trainer_spec
from tests.support import clock, kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase, Reason, TrainingJobStatus
from trainyard_operator.controller import pod_actions
from trainyard_operator.controller.backend import BackendError, OnCreated, Refused, Stale, Unavailable, ignore
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.pod_actions import CREATED_WAIT, DELETION_REPEATED_AFTER
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.unreadable import UnreadableJob, read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod, WorkerPod
from trainyard_operator.lifecycle.quiet_changes import QUIET_INTERVAL
from trainyard_operator.manifests.children import secret_name

KEY = ("default", "job")


class Recorder(FakeClusterBackend):
    """A fake cluster that records each call, and fails with the errors it is given."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(cluster)
        self.calls: list[str] = []
        self.errors: list[Exception] = []

    def note(self, call: str) -> None:
        self.calls.append(call)
        if self.errors:
            raise self.errors.pop(0)

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        self.note("status")
        return await super().write_status(job, status)

    async def dry_run(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        self.note(f"dry-run Pod {pod['metadata']['name']}")
        return await super().dry_run(job, pod)

    async def store_revision(self, job: TrainingJob, revision: dict[str, Any]) -> dict[str, Any]:
        self.note("store ControllerRevision")
        return await super().store_revision(job, revision)

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        self.note("create " + ", ".join(f"{m['kind']} {m['metadata']['name']}" for m in manifests))
        await super().create(job, manifests, first=first, on_created=on_created)

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        self.note(f"{'force-' if force else ''}delete {', '.join(w.name for w in workers)}")
        await super().delete_pods(job, workers, force=force)


class Operator:
    """A reconciler on a fake cluster, with a clock that jumps."""

    def __init__(self, **spec: Any) -> None:
        self.cluster = FakeCluster(**spec)
        self.backend = Recorder(self.cluster)
        self.cache: Cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.outcomes: list[str] = []
        self.reconciler = Reconciler(
            self.cache,
            self.queue,
            self.backend,
            TRAINER_IMAGE,
            clock=lambda: self.cluster.now,
            on_reconciled=lambda _, outcome: self.outcomes.append(outcome),
        )
        assert self.cluster.job is not None
        self.queue.add(self.cache.put_job(self.cluster.job))

    @property
    def job(self) -> TrainingJob:
        assert self.cluster.job is not None
        return self.cluster.job

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler.run(parallel=2))
        try:
            await clock.settle()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_the_status_is_written_first_then_shared_objects_then_pods() -> None:
    async def scenario() -> None:
        operator = Operator(trainer=trainer_spec())
        async with operator.working():
            secret = secret_name(operator.job, "token")
            assert operator.backend.calls == [
                "dry-run Pod job-1-0",
                "store ControllerRevision",
                "status",  # the attempt, before anything is done for it
                f"create Service job, ConfigMap job, Secret {secret}",
                "create Pod job-1-0, Pod job-1-1",
            ]
            assert operator.job.status.attempt == 1
            assert set(operator.outcomes) == {"ok"}

    clock.run(scenario())


def test_responses_of_the_api_server_are_cached_at_once() -> None:
    async def scenario() -> None:
        operator = Operator()
        async with operator.working():
            operator.queue.add(KEY)  # before any watch stream has delivered a thing
            await clock.settle()
            assert [w.name for w in operator.cache.workers(KEY)] == ["job-1-0", "job-1-1"]
            assert operator.cluster.created == 2

    clock.run(scenario())


class Gating(Recorder):
    """An API server that says of each pod with a scheduling gate that it waits for it."""

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        waits = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
        gated = {"phase": "Pending", "conditions": [waits]}
        await super().create(job, manifests, first=first, on_created=lambda body: on_created({**body, "status": gated}))


def test_what_created_pods_wait_for_is_said_without_another_event() -> None:
    async def scenario() -> None:
        operator = Operator(scheduling={"queue": "research"})
        operator.reconciler.backend = operator.reconciler.pods.backend = Gating(operator.cluster)
        async with operator.working():
            await asyncio.sleep(CREATED_WAIT)
            await clock.settle()
            running = operator.job.status.condition(ConditionType.RUNNING)
            assert running is not None
            assert running.reason == Reason.QUEUE_UNAVAILABLE

    clock.run(scenario())


def test_no_pod_is_created_while_an_uncached_pod_of_another_attempt_exists() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.cluster.pods["job-7-0"] = make_pod(operator.job, attempt=7, status=kubelet.scheduled())
        async with operator.working():
            assert operator.outcomes[:2] == ["ok", "Stale"]
            await asyncio.sleep(5)
            assert operator.job.status.attempt == 7, "the next reconciliation has adopted it"
            assert set(operator.cluster.pods) == {"job-7-0", "job-7-1"}

    clock.run(scenario())


def test_a_deleted_job_gets_no_children() -> None:
    async def scenario() -> None:
        operator = Operator()
        metadata = operator.job.metadata.model_copy(update={"deletion_timestamp": "2030-01-01T12:00:00Z"})
        operator.cache.put_job(operator.job.replace(metadata=metadata))
        async with operator.working():
            assert (operator.backend.calls, operator.outcomes) == ([], ["ok"])

    clock.run(scenario())


def test_an_unknown_job_is_dropped() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.cache.remove_job(KEY, operator.job.metadata.uid)
        async with operator.working():
            assert (operator.backend.calls, operator.outcomes) == ([], ["ok"])

    clock.run(scenario())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Stale("old view"), "Stale"),
        (Unavailable("no answer"), "Unavailable"),
        (Refused(Reason.PODS_REFUSED, "no"), "Refused"),
        (ZeroDivisionError("a bug"), "bug"),
    ],
)
def test_every_error_leads_to_a_retry_after_a_backoff(error: Exception, outcome: str) -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.backend.errors = [error] * 3
        async with operator.working():
            assert operator.outcomes == [outcome]
            await asyncio.sleep(1)
            assert operator.outcomes[:3] == [outcome] * 3
            assert operator.outcomes[3:] == ["ok"] * len(operator.outcomes[3:])
            assert operator.cluster.created == 2, "it has recovered"

    clock.run(scenario())


def test_the_wait_after_errors_grows() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.backend.errors = [Unavailable("no answer")] * 1000
        async with operator.working():
            await asyncio.sleep(600)
            assert 10 <= len(operator.outcomes) <= 25

    clock.run(scenario())


def test_a_decision_from_outdated_data_is_repeated_within_a_second_however_often() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.backend.errors = [Stale("old view")] * 30
        async with operator.working():
            await asyncio.sleep(31)
            assert operator.outcomes.count("Stale") == 30
            assert operator.cluster.created == 2

    clock.run(scenario())


class Throttled(BackendError):
    """An error that the operator gets one day."""


def test_a_new_kind_of_error_is_logged_and_retried_without_any_registration(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.backend.errors = [Throttled("slow down")]
        async with operator.working():
            assert operator.outcomes == ["Throttled"]
            await asyncio.sleep(1)
            assert operator.cluster.created == 2, "it has recovered"

    clock.run(scenario())
    [record] = caplog.records
    assert (record.levelname, record.message) == (
        "WARNING",
        "default/job: the request failed; retrying: slow down; next try in 0.05 s",
    )


@pytest.mark.parametrize("error", BackendError.__subclasses__())
def test_every_error_says_how_it_is_logged(error: type[BackendError]) -> None:
    assert error.log_level in (logging.DEBUG, logging.WARNING)
    assert error.explanation


def test_a_job_that_is_gone_is_not_reconciled_again() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.cluster.job = None
        async with operator.working():
            await asyncio.sleep(1000)
            assert operator.backend.calls == ["dry-run Pod job-1-0"]

    clock.run(scenario())


def test_a_bug_in_one_job_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        operator = Operator()
        broken = make_job("broken", uid="uid-2")
        operator.cache.put_pod({**make_pod(broken), "spec": None})
        operator.queue.add(operator.cache.put_job(broken))
        operator.backend.errors = [RuntimeError("a bug"), RuntimeError("a bug")]
        async with operator.working():
            await asyncio.sleep(30)
            assert operator.cluster.created == 2

    with caplog.at_level(logging.ERROR):
        clock.run(scenario())
    assert "unexpected error; next try in 0.05 s" in caplog.text


def test_a_refused_pod_is_reported_in_the_status_until_it_is_created() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.cluster.quota_exceeded = True
        async with operator.working():
            await asyncio.sleep(3)
            condition = operator.job.status.condition(ConditionType.RUNNING)
            assert condition is not None
            assert (condition.reason, condition.message) == ("PodsRefused", "exceeded quota")
            assert [e.reason for e in operator.cluster.events].count("PodsRefused") == 1
            operator.cluster.quota_exceeded = False
            await asyncio.sleep(120)
            assert operator.cluster.created == 2
            operator.queue.add(KEY)  # the watch stream shows the pods
            await clock.settle()
            condition = operator.job.status.condition(ConditionType.RUNNING)
            assert condition is not None
            assert condition.reason == "WaitingForPods"

    clock.run(scenario())


def test_a_template_from_which_no_pod_can_be_built_is_reported_with_the_fix(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        operator = Operator(workers={"template": {"spec": {"containers": [{"image": "y"}]}}})
        async with operator.working():
            await asyncio.sleep(30)
            condition = operator.job.status.condition(ConditionType.FAILED)
            assert condition is not None
            assert (condition.reason, condition.message) == (
                "InvalidSpec",
                "spec.workers.template.spec.containers[0].name: is required and must be a text; add it",
            )
            assert "bug" not in operator.outcomes
            assert not any(call.startswith("create") for call in operator.backend.calls)

    clock.run(scenario())
    assert not any(record.exc_info for record in caplog.records)


def test_a_large_group_is_created_in_parts_and_a_suspension_takes_effect_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pod_actions, "CREATED_AT_ONCE", 50)

    async def scenario() -> None:
        operator = Operator(replicas=150)
        parts: list[int] = []
        create = operator.backend.create

        async def count(job: TrainingJob, manifests: Sequence[dict[str, Any]], **kw: Any) -> None:
            if manifests[0]["kind"] == "Pod":
                parts.append(len(manifests))
                if len(parts) == 2:
                    operator.cluster.edit(suspend=True)
                    operator.cache.put_job(operator.job)
            await create(job, manifests, **kw)

        operator.backend.create = count  # type: ignore[method-assign]
        async with operator.working():
            await asyncio.sleep(1)
            assert parts == [50] * 2
            assert sum(call.startswith("create Service") for call in operator.backend.calls) == 1, "for all parts"
            assert operator.job.status.phase == Phase.SUSPENDING

    clock.run(scenario())


def run_pods(operator: Operator, *indexes: int) -> None:
    """Let pods run, and the cache know it."""
    for index in indexes:
        operator.cluster.set_pod(f"job-1-{index}", kubelet.running(operator.cluster.now))
        operator.cache.put_pod(operator.cluster.pods[f"job-1-{index}"])


def test_figures_are_written_together_and_a_decision_at_once() -> None:
    async def scenario() -> None:
        operator = Operator(replicas=4)
        async with operator.working():
            writes = operator.backend.calls.count("status")
            for index in range(2):
                run_pods(operator, index)
                operator.queue.add(KEY)
                await clock.settle()
            assert operator.backend.calls.count("status") == writes, "how many pods run changes nothing"
            assert operator.job.status.workers.running == 0
            operator.cluster.pass_time(QUIET_INTERVAL.total_seconds())
            await asyncio.sleep(QUIET_INTERVAL.total_seconds())
            await clock.settle()
            assert operator.backend.calls.count("status") == writes + 1, "but it is written after a while"
            assert operator.job.status.workers.running == 2
            run_pods(operator, 2, 3)
            operator.queue.add(KEY)
            await clock.settle()
            assert operator.backend.calls.count("status") == writes + 2
            assert operator.job.status.phase is Phase.RUNNING

    clock.run(scenario())


def test_a_pod_is_deleted_once_although_the_cache_does_not_show_it_yet() -> None:
    async def scenario() -> None:
        operator = Operator()
        async with operator.working():
            operator.cluster.edit(suspend=True)
            operator.cache.put_job(operator.job)
            for _ in range(3):
                operator.queue.add(KEY)
                await clock.settle()
            deletions = [call for call in operator.backend.calls if call.startswith("delete")]
            assert deletions == ["delete job-1-0, job-1-1"]
            # Should the API server have forgotten it, as after a restore of its database.
            await asyncio.sleep(DELETION_REPEATED_AFTER + 1)
            deletions = [call for call in operator.backend.calls if call.startswith("delete")]
            assert deletions == ["delete job-1-0, job-1-1"] * 2

    clock.run(scenario())


def test_a_deletion_that_failed_is_repeated() -> None:
    async def scenario() -> None:
        operator = Operator()
        async with operator.working():
            operator.cluster.edit(suspend=True)
            operator.cache.put_job(operator.job)
            delete, failures = operator.backend.delete_pods, [Unavailable("no answer")] * 2

            async def fail_first(job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
                if failures:
                    raise failures.pop()
                await delete(job, workers, force=force)

            operator.backend.delete_pods = fail_first  # type: ignore[method-assign]
            operator.queue.add(KEY)
            await asyncio.sleep(1)
            assert [call for call in operator.backend.calls if call.startswith("delete")] == ["delete job-1-0, job-1-1"]

    clock.run(scenario())


def test_a_job_that_is_deleted_while_its_pods_are_created_is_no_bug() -> None:
    async def scenario() -> None:
        operator = Operator()
        list_pods = operator.backend.list_pods

        async def delete_meanwhile(job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
            operator.cache.remove_job(KEY, job.metadata.uid)
            return await list_pods(job, other_than=other_than)

        operator.backend.list_pods = delete_meanwhile  # type: ignore[method-assign]
        async with operator.working():
            await asyncio.sleep(1)
            assert set(operator.outcomes) == {"ok"}

    clock.run(scenario())


def test_the_timer_of_a_plan_leads_to_a_reconciliation() -> None:
    async def scenario() -> None:
        operator = Operator(restartPolicy={"backoff": {"initialSeconds": 100}})
        async with operator.working():
            cluster = operator.cluster
            for name in list(cluster.pods):
                cluster.set_pod(name, kubelet.running(cluster.now))
                operator.cache.put_pod(cluster.pods[name])
            operator.queue.add(KEY)
            await clock.settle()
            for name in list(cluster.pods):
                cluster.fail_pod(name, 1)
                operator.cache.put_pod(cluster.pods[name])
            operator.queue.add(KEY)
            await clock.settle()
            for name in list(cluster.pods):  # the operator deletes only what holds resources or a name in its way
                operator.cache.remove_pod(cluster.pods.pop(name))
            operator.queue.add(KEY)
            await clock.settle()
            assert cluster.created == 2
            started = asyncio.get_running_loop().time()
            while cluster.created < 4:
                cluster.pass_time(1)
                await asyncio.sleep(1)
            assert asyncio.get_running_loop().time() - started == pytest.approx(100, abs=2)

    clock.run(scenario())


def test_two_jobs_are_worked_on_at_the_same_time_but_one_job_is_not() -> None:
    async def scenario() -> None:
        operator = Operator()
        looking: list[Key] = []

        async def slow(key: Key) -> float | None:
            assert key not in looking
            looking.append(key)
            await asyncio.sleep(10)
            looking.remove(key)
            return None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Reconciler, "reconcile", lambda _, key: slow(key))
            operator.queue.add(("default", "other"))
            async with operator.working():
                assert len(looking) == 2
                operator.queue.add(KEY)
                await asyncio.sleep(5)
                assert len(looking) == 2
                await asyncio.sleep(10)
                assert looking == [KEY]

    clock.run(scenario())


def test_worker_pods_are_what_observe_pod_returns() -> None:
    """`make_worker` is what `observe_worker` makes of `make_pod`."""
    operator_view = Cache()
    operator_view.put_job(make_job())
    operator_view.put_pod(make_pod(make_job(), status=kubelet.scheduled()))
    assert operator_view.workers(KEY) == (make_worker(0, state="Pending", node="node-1"),)


@pytest.mark.parametrize(
    ("manager", "ours"), [(None, True), ("trainyard.dev/operator", True), ("example.com/a", False)]
)
def test_a_job_of_another_controller_is_left_alone(manager: str | None, ours: bool) -> None:
    async def scenario() -> None:
        operator = Operator(trainer=trainer_spec(), **({"managedBy": manager} if manager else {}))
        async with operator.working():
            assert bool(operator.backend.calls) == bool(operator.cluster.pods) == ours
            # Whatever its controller writes, and whatever the user changes.
            operator.cluster.edit(suspend=True)
            operator.queue.add(operator.cache.put_job(operator.job))
            await clock.settle()
            assert bool(operator.backend.calls) == bool(operator.cluster.events) == ours
            assert (operator.job.status == TrainingJobStatus()) == (not ours)

    clock.run(scenario())


def test_an_unreadable_job_of_another_controller_is_left_alone() -> None:
    async def scenario() -> None:
        operator = Operator()
        body = {**make_job(managedBy="example.com/a", uid="uid-2", version=99).to_dict()}
        body["spec"]["workers"]["replicas"] = "many"
        job = read_job(body)
        assert isinstance(job, UnreadableJob)
        operator.cache.remove_job(KEY, "uid-1")
        operator.queue.add(operator.cache.put_job(job))
        async with operator.working():
            assert (operator.cluster.unreadable, operator.cluster.events) == ([], [])

    clock.run(scenario())


def test_a_finished_job_is_deleted_at_its_time() -> None:
    async def scenario() -> None:
        operator = Operator(replicas=1, ttlSecondsAfterFinished=600)
        async with operator.working():
            operator.cluster.set_pod("job-1-0", kubelet.ended(operator.cluster.now, 0))
            operator.cache.put_pod(operator.cluster.pods["job-1-0"])
            operator.queue.add(KEY)
            await clock.settle()
            assert operator.job.status.phase is Phase.SUCCEEDED
            operator.cluster.pass_time(600)
            await asyncio.sleep(599)
            assert operator.job.status.finished
            await asyncio.sleep(1)
            await clock.settle()
            assert operator.cluster.job is None
            assert operator.outcomes[-1] == "ok"

    clock.run(scenario())


# --- gang schedulers ------------------------------------------------------------------------------------------


class WithoutGangs(Recorder):
    """A cluster that does not serve the groups of a gang scheduler."""

    served = False

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        if not self.served and manifests[0]["kind"] == "PodGroup":
            self.note("refuse PodGroup")
            raise Refused(Reason.GANG_UNAVAILABLE, "the API server refuses PodGroup job-1: not found")
        await super().create(job, manifests, first=first, on_created=on_created)


def test_the_group_object_of_an_attempt_comes_before_its_pods_and_those_of_others_go() -> None:
    async def scenario() -> None:
        operator = Operator(scheduling={"gang": "native"}, restartPolicy={"backoff": {"initialSeconds": 0}})
        async with operator.working():
            assert operator.backend.calls[-3:] == [
                "create Service job",
                "create PodGroup job-1",
                "create Pod job-1-0, Pod job-1-1",
            ]
            for name in ("job-1-0", "job-1-1"):
                operator.cluster.fail_pod(name, 1)
                operator.cache.put_pod(operator.cluster.pods[name])
            operator.queue.add(KEY)
            await clock.settle()
            for name in list(operator.cluster.pods):
                pod = operator.cluster.pods[name]
                operator.cluster.remove_pod(name)
                operator.cache.remove_pod(pod)
            operator.queue.add(KEY)
            await clock.settle()
            assert set(operator.cluster.pods) == {"job-2-0", "job-2-1"}
            groups = [name for kind, name in operator.cluster.children if kind == "PodGroup"]
            assert groups == ["job-2"], "one for the current attempt only"

    clock.run(scenario())


def test_a_gang_scheduler_that_is_missing_costs_a_request_now_and_then_until_it_is_there() -> None:
    async def scenario() -> None:
        operator = Operator(scheduling={"gang": "native"})
        backend = WithoutGangs(operator.cluster)
        operator.backend = operator.reconciler.backend = operator.reconciler.pods.backend = backend
        async with operator.working():
            await asyncio.sleep(3600)
            running = operator.job.status.condition(ConditionType.RUNNING)
            assert running is not None
            assert (running.status, running.reason) == ("False", "GangUnavailable")
            assert running.message.startswith(
                "spec.scheduling.gang: the API server refuses PodGroup job-1: not found; native needs Kubernetes 1.37"
            )
            assert operator.cluster.created == 0, "no pod without its group"
            assert 60 <= backend.calls.count("refuse PodGroup") <= 80, "one try in a minute after a few at first"
            assert operator.job.status.attempt == 1
            backend.served = True
            await asyncio.sleep(61)
            assert operator.cluster.created == 2
            assert [event.reason for event in operator.cluster.events].count("GangUnavailable") == 1

    clock.run(scenario())


def test_a_job_whose_queue_does_not_exist_has_no_pods_until_it_does() -> None:
    async def scenario() -> None:
        operator = Operator(scheduling={"queue": "research"})
        operator.cluster.queue_problem = "spec.scheduling.queue: the namespace default has no LocalQueue research"
        async with operator.working():
            await asyncio.sleep(600)
            running = operator.job.status.condition(ConditionType.RUNNING)
            assert running is not None
            assert (running.status, running.reason) == ("False", "QueueUnavailable")
            assert running.message == operator.cluster.queue_problem
            assert operator.cluster.created == 0, "pods would wait in it for ever"
            operator.cluster.queue_problem = None
            await asyncio.sleep(61)
            assert operator.cluster.created == 2
            assert [event.reason for event in operator.cluster.events].count("QueueUnavailable") == 1

    clock.run(scenario())


def test_the_groups_of_a_suspended_job_are_deleted() -> None:
    async def scenario() -> None:
        operator = Operator(scheduling={"gang": "volcano"})
        async with operator.working():
            assert ("PodGroup", "job-1") in operator.cluster.children
            operator.cluster.edit(suspend=True)
            operator.queue.add(operator.cache.put_job(operator.job))
            await clock.settle()
            for name in list(operator.cluster.pods):
                pod = operator.cluster.pods[name]
                operator.cluster.remove_pod(name)
                operator.cache.remove_pod(pod)
            operator.queue.add(KEY)
            await clock.settle()
            assert operator.job.status.phase is Phase.SUSPENDED
            assert [name for kind, name in operator.cluster.children if kind == "PodGroup"] == []

    clock.run(scenario())
