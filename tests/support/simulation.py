"""The operator's real core at work in a simulated world: its cache lags, it crashes, and it sleeps between looks."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from tests.support import kubelet
from tests.support.clock import JumpingLoop
from tests.support.world import Crash, World, WorldBackend
from trainyard.protocol.progress import Progress
from trainyard_operator.controller.backend import BackendError, Gone
from trainyard_operator.controller.cache import Cache
from trainyard_operator.controller.progress import rank_zero
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import Plan
from trainyard_operator.lifecycle.observation import Observation, WorkerState, observe_pod
from trainyard_operator.lifecycle.plan import plan

KEY = ("default", "job")
TRAINER_IMAGE = "trainer"


class Simulation:
    """One job, one operator, one clock."""

    backend: type[WorldBackend] = WorldBackend

    def __init__(self, **spec: Any) -> None:
        self.world = World(**spec)
        self._runner = asyncio.Runner(loop_factory=JumpingLoop)
        self._due: datetime | None = None
        self._condemned = False
        self._patch = patch("trainyard_operator.controller.reconciler.plan", self._checked_plan)
        self._patch.start()
        self.start_operator()

    def close(self) -> None:
        self._patch.stop()
        self._runner.close()

    def decide(self, observation: Observation) -> Plan:
        """The plan; a mutant of this class decides otherwise."""
        return plan(observation)

    def _checked_plan(self, observation: Observation) -> Plan:
        step = self.decide(observation)
        assert step == self.decide(observation), "the same observation led to another plan"
        if step.wake_after == 0:
            assert step.status != observation.desired_job.status, "a look at once that has changed nothing: a busy loop"
            assert step.actions == (), "a decision was acted upon before it was written down"
        return step

    # --- the operator ---------------------------------------------------------------------------------------

    def start_operator(self) -> None:
        """A new process: all it knows is a list."""

        async def make() -> Reconciler:
            backend = self.backend(self.world)
            return Reconciler(Cache(), WorkQueue(), backend, TRAINER_IMAGE, clock=lambda: self.world.now)

        self.operator = self._runner.run(make())
        self.world.job_stream.clear()
        self.world.pod_stream.clear()
        self.resync()

    def resync(self) -> None:
        """A complete list, as at start and from time to time."""
        job = self.world.job
        self.operator.cache.replace([job] if job else [], self.world.pods.values(), self.world.version)
        self._due = self.world.now

    def deliver(self, *, jobs: int = 0, pods: int = 0) -> None:
        """The watch streams deliver some changes, the oldest first."""
        cache = self.operator.cache
        for kind, job in _take(self.world.job_stream, jobs):
            if kind == "DELETED":
                cache.remove_job(KEY, job.metadata.uid)
            else:
                cache.put_job(job)
            self._due = self.world.now
        for kind, pod in _take(self.world.pod_stream, pods):
            (cache.remove_pod if kind == "DELETED" else cache.put_pod)(pod)
            self._due = self.world.now

    def read_page(self) -> None:
        """The poller reads rank 0's page, if it would: as `ProgressPoller` does."""
        entry = self.operator.cache.get(KEY)
        pod = entry and rank_zero(entry)
        if entry is None or not pod or pod["metadata"]["name"] not in self.world.pods:
            return
        attempt = self.world.running_attempt(pod["metadata"]["name"])
        page = self.world.pages.get(attempt) or Progress(attempt=attempt)
        entry.progress = page.replace(updated_at=self.world.now.replace(microsecond=0))
        self._due = self.world.now

    @property
    def awake(self) -> bool:
        """Whether a look is due."""
        return self._due is not None and self._due <= self.world.now

    def look(self) -> None:
        """One look, if one is due."""
        if not self.awake:
            return
        self._due = None
        try:
            wake_after = self._runner.run(self.operator.reconcile(KEY))
        except Crash:
            self.start_operator()
        except Gone:
            pass
        except AssertionError:
            self._condemned = True
            raise
        except BackendError:
            self._due = self.world.now + timedelta(seconds=0.5)
        else:
            if wake_after is not None:
                self._due = self.world.now + timedelta(seconds=wake_after)

    # --- a world that behaves -------------------------------------------------------------------------------

    def run_smoothly(self, rounds: int) -> None:
        """Nothing goes wrong for a while."""
        for _ in range(rounds):
            self.deliver(jobs=1000, pods=1000)
            if self.awake:
                self.look()
            else:
                self._kubelets_work(to_the_end=False)

    def run_to_the_end(self, rounds: int = 300) -> None:
        """From here on nothing goes wrong any more: the job must finish, and leave no pod that holds resources."""
        if self._condemned:
            return  # the verdict stands; what comes after it would only hide it
        world = self.world
        world.quota = world.silent = False
        world.fuse = None
        if world.job is not None and world.job.spec.suspend:
            world.edit(suspend=False)
        for _ in range(rounds):
            self.deliver(jobs=1000, pods=1000)
            if self.awake:
                self.look()
            elif self._kubelets_work(to_the_end=True):
                continue
            elif self._due is not None:
                world.now = max(world.now, self._due)
            else:
                break
        assert world.job is not None
        assert world.job.status.finished, f"asleep in {world.job.status.phase}: {world.job.status.conditions}"
        left = [observe_pod(pod) for pod in world.pods.values()]
        active = [w.name for w in left if w.active and w.uid not in world.lost]
        assert active == [], "a finished job still holds pods"

    def _kubelets_work(self, *, to_the_end: bool) -> bool:
        """Each pod goes one step further towards its end; False if there was nothing to do."""
        world = self.world
        for name, pod in list(world.pods.items()):
            worker = observe_pod(pod)
            if worker.uid in world.lost:
                continue
            if worker.terminating:
                world.remove_pod(name)
            elif worker.state is WorkerState.PENDING:
                world.set_pod(name, kubelet.running(world.now))
            else:
                continue
            return True
        there = [w for w in map(observe_pod, world.pods.values()) if w.uid not in world.lost]
        workers = [w for w in there if not w.is_placeholder]
        assert world.job is not None
        if len(workers) < world.job.effective_job.spec.pods or not to_the_end:
            return False
        running = [worker.name for worker in workers if worker.state is WorkerState.RUNNING]
        awaiting_restart = [name for name in running if world.is_held(name)]
        for name in awaiting_restart:  # a launcher that has heard nothing for long
            world.release(name)
        for name in running if not awaiting_restart else ():
            world.set_pod(name, kubelet.ended(world.now, 0))
        return bool(running)


def _take(stream: list[Any], count: int) -> list[Any]:
    taken = stream[:count]
    del stream[:count]
    return taken
