"""The operator's real controller on a simulated cluster: its cache lags, it crashes, and it sleeps in between."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from tests.builders import NOW
from tests.support import kubelet
from tests.support.clock import JumpingLoop
from tests.support.fake_cluster import Crash, FakeCluster, FakeClusterBackend
from trainyard.protocol.progress import Progress
from trainyard_operator.controller.backend import BackendError, Gone
from trainyard_operator.controller.cache import Cache, CachedPod
from trainyard_operator.controller.pod_actions import CreationFailed
from trainyard_operator.controller.progress import rank_zero
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import Plan
from trainyard_operator.lifecycle.observation import Observation, WorkerState, observe_pod
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.lifecycle.successes import parse_indexes

KEY = ("default", "job")
TRAINER_IMAGE = "trainer"


class Simulation:
    """One job, one operator, one clock."""

    backend: type[FakeClusterBackend] = FakeClusterBackend

    def __init__(self, **spec: Any) -> None:
        self.cluster = FakeCluster(**spec)
        self._loop = JumpingLoop()
        self._runner = asyncio.Runner(loop_factory=lambda: self._loop)
        self._due: datetime | None = None
        self._failed = self._planned = False
        self._patch = patch("trainyard_operator.controller.reconciler.plan", self._checked_plan)
        self._patch.start()
        self.start_operator()

    def close(self) -> None:
        self._patch.stop()
        self._runner.close()

    def decide(self, observation: Observation) -> Plan:
        """Return the plan; a test's subclass decides differently."""
        return plan(observation)

    def _checked_plan(self, observation: Observation) -> Plan:
        self._planned = True
        step = self.decide(observation)
        assert step == self.decide(observation), "the same observation led to another plan"
        if step.wake_after == 0:
            assert step.status != observation.desired_job.status, (
                "reconciling again at once without a change: a busy loop"
            )
            assert step.actions == (), "a decision was acted on before it was recorded"
        return step

    # --- the operator ---------------------------------------------------------------------------------------

    def start_operator(self) -> None:
        """Start a new operator, which only knows a complete list."""

        async def make() -> Reconciler:
            backend = self.backend(self.cluster)
            return Reconciler(Cache(), WorkQueue(), backend, TRAINER_IMAGE, clock=lambda: self.cluster.now)

        self.operator = self._runner.run(make())
        self.cluster.job_stream.clear()
        self.cluster.pod_stream.clear()
        self.resync()

    def resync(self) -> None:
        """Read a complete list, as at start and periodically."""
        job = self.cluster.job
        pods = [known for pod in self.cluster.pods.values() if (known := CachedPod.read(pod))]
        self.operator.cache.replace([job] if job else [], pods, self.cluster.version)
        self._due = self.cluster.now

    def deliver(self, *, jobs: int = 0, pods: int = 0) -> None:
        """Let the watch streams deliver some changes, the oldest first."""
        cache = self.operator.cache
        for kind, job in _take(self.cluster.job_stream, jobs):
            if kind == "DELETED":
                cache.remove_job(KEY, job.metadata.uid)
            else:
                cache.put_job(job)
            self._due = self.cluster.now
        for kind, pod in _take(self.cluster.pod_stream, pods):
            (cache.remove_pod if kind == "DELETED" else cache.put_pod)(pod)
            self._due = self.cluster.now

    def poll_progress(self) -> None:
        """Read rank 0's metrics page under the same conditions as `ProgressPoller`."""
        entry = self.operator.cache.get(KEY)
        pod = entry and rank_zero(entry)
        if entry is None or not pod or pod.name not in self.cluster.pods:
            return
        attempt = self.cluster.running_attempt(pod.name)
        page = self.cluster.pages.get(attempt) or Progress(attempt=attempt)
        entry.progress = page.replace(updated_at=self.cluster.now.replace(microsecond=0))
        self._due = self.cluster.now

    @property
    def due(self) -> bool:
        """Whether a reconciliation is due."""
        return self._due is not None and self._due <= self.cluster.now

    def reconcile(self) -> None:
        """Reconcile once, if a reconciliation is due."""
        if not self.due:
            return
        self._due = None
        self._loop.now = (self.cluster.now - NOW).total_seconds()  # back-off is in the time of the loop
        try:
            wake_after = self._runner.run(self._reconcile())
        except Crash:
            self.start_operator()
        except Gone:
            pass
        except AssertionError:
            self._failed = True
            raise
        except CreationFailed:
            self._due = self.cluster.now
        except BackendError:
            self._due = self.cluster.now + timedelta(seconds=0.5)
        else:
            if wake_after is not None:
                self._due = self.cluster.now + timedelta(seconds=wake_after)

    async def _reconcile(self) -> float | None:
        """Reconcile once, and let launchers answer, which queues the job again."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.now = (self.cluster.now - NOW).total_seconds()
        self._planned = False
        wake_after = await self.operator.reconcile(KEY)
        if not await self._launchers_answered():
            return wake_after
        # It has waited for the first answer of a launcher.
        if not self._planned:
            wake_after = await self.operator.reconcile(KEY)
            return 0 if await self._launchers_answered() else wake_after
        return 0

    async def _launchers_answered(self) -> bool:
        """Let all calls to launchers end; return whether that has queued the job."""
        await self.operator.launchers.settle()
        if self.cluster.violation is not None:
            raise self.cluster.violation
        queue = self.operator.queue
        queued = len(queue) > 0
        while len(queue):
            queue.done(await queue.get())
        return queued

    # --- without faults -------------------------------------------------------------------------------

    def run_smoothly(self, rounds: int) -> None:
        """Let nothing go wrong for a while."""
        for _ in range(rounds):
            self.deliver(jobs=1000, pods=1000)
            if self.due:
                self.reconcile()
            else:
                self._kubelets_work(to_the_end=False)

    def run_to_the_end(self, rounds: int = 300) -> None:
        """Let nothing go wrong any more: the job must finish, and no pod may hold resources."""
        if self._failed:
            return  # the first failure stands; later ones would hide it
        cluster = self.cluster
        cluster.quota_exceeded = cluster.unavailable = False
        cluster.writes_until_crash = None
        if cluster.job is not None and cluster.job.spec.suspend:
            cluster.edit(suspend=False)
        for _ in range(rounds):
            self.deliver(jobs=1000, pods=1000)
            if self.due:
                self.reconcile()
            elif self._kubelets_work(to_the_end=True):
                continue
            elif self._due is not None:
                cluster.now = max(cluster.now, self._due)
            else:
                break
        assert cluster.job is not None
        assert cluster.job.status.finished, f"asleep in {cluster.job.status.phase}: {cluster.job.status.conditions}"
        left = [observe_pod(pod) for pod in cluster.pods.values()]
        active = [w.name for w in left if w.active and w.uid not in cluster.lost]
        assert active == [], "a finished job still holds pods"

    def _kubelets_work(self, *, to_the_end: bool) -> bool:
        """Advance the pods by one step towards their end; return False if there was nothing to do."""
        cluster = self.cluster
        for name, pod in list(cluster.pods.items()):
            worker = observe_pod(pod)
            if worker.uid in cluster.lost:
                continue
            if worker.terminating:
                cluster.remove_pod(name)
            elif worker.state is WorkerState.PENDING:
                cluster.set_pod(name, kubelet.running(cluster.now))
            else:
                continue
            return True
        there = [w for w in map(observe_pod, cluster.pods.values()) if w.uid not in cluster.lost]
        workers = [w for w in there if not w.is_placeholder]
        assert cluster.job is not None
        removed = parse_indexes(cluster.job.status.succeeded_indexes) - {worker.index for worker in workers}
        if len(workers) + len(removed) < cluster.job.effective_job.spec.pods or not to_the_end:
            return False
        running = [worker.name for worker in workers if worker.state is WorkerState.RUNNING]
        awaiting_restart = [name for name in running if cluster.awaits_restart(name)]
        for name in awaiting_restart:  # a launcher that got no request for long
            cluster.release(name)
        for name in running if not awaiting_restart else ():
            cluster.set_pod(name, kubelet.ended(cluster.now, 0))
        return bool(running)


def _take(stream: list[Any], count: int) -> list[Any]:
    taken = stream[:count]
    del stream[:count]
    return taken
