"""A small world for the operator's core: an API server in memory that knows what really happened to one job.

It judges every write: what the operator must never do raises `AssertionError` at the moment when it does it.
"""

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from tests.builders import GRACE, NOW, make_job
from tests.support import kubelet
from trainyard.protocol import constants
from trainyard.protocol.launcher_state import ExitInfo, PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason, TrainingJobStatus
from trainyard_operator.controller.backend import Gone, Refused, Stale, Unavailable
from trainyard_operator.controller.cache import owner_uid
from trainyard_operator.lifecycle.observation import Pod, Worker, observe_worker
from trainyard_operator.lifecycle.status_builder import Event

MARGIN = 30
"""Seconds after its grace period that a pod is waited for."""

Change = tuple[str, Any]
"""What a watch stream delivers: ADDED/MODIFIED or DELETED, and the object."""


class Crash(Exception):
    """The operator's process is killed here."""


class World:
    """etcd, the API server, the kubelets and the users of one job."""

    def __init__(self, **spec: Any) -> None:
        self.now: datetime = NOW
        self.version = 1
        self.job: TrainingJob | None = make_job(**spec)
        self.pods: dict[str, dict[str, Any]] = {}
        self.children: dict[tuple[str, str], dict[str, Any]] = {}
        self.job_stream: list[Change] = []
        self.pod_stream: list[Change] = []
        self.created = 0
        self.events: list[Event] = []
        # What really happened, by attempt.
        self.started: dict[int, set[int]] = {}
        self.failed: set[int] = set()
        self.last_run: dict[str, int] = {}
        """Attempt that the processes in a pod took part in last, by UID, where it is not the pod's own."""
        self.pages: dict[int, Progress] = {}
        """Rank 0's metrics page, by attempt."""
        self.launchers: dict[str, PodState] = {}
        """What the launchers in running pods that take orders say, by UID."""
        self.deaf: set[str] = set()
        """Names of pods whose launcher does not follow orders."""
        self.short: set[int] = set()
        """Attempts of which a pod has found no room."""
        self.roomy: set[int] = set()
        """Groups of which a placeholder has run."""
        self.lost: set[str] = set()
        """UIDs of pods whose node is gone: no kubelet will ever say that they have ended."""
        # Faults to come.
        self.quota = False
        self.silent = False
        self.fuse: int | None = None
        """Writes until the operator crashes; odd: after the write, even: before it."""

    # --- what users and kubelets do -------------------------------------------------------------------------

    def edit(self, **changes: Any) -> None:
        """A user changes the spec."""
        assert self.job is not None
        spec = self.job.spec
        if "replicas" in changes:
            spec = spec.replace(workers=spec.workers.replace(replicas=changes.pop("replicas")))
        generation = self.job.metadata.generation + 1
        self._store_job(self.job.replace(spec=spec.replace(**changes)), generation=generation)

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def set_pod(self, name: str, status: kubelet.Status) -> None:
        """A kubelet reports."""
        pod = {**self.pods[name], "status": status}
        index, uid = identity(pod)[1], pod["metadata"]["uid"]
        state = status.get("containerStatuses", [{}])[0].get("state", {})
        if observe_worker(pod).placeholder:
            if "running" in state:
                self.roomy.add(identity(pod)[0])
            self._store_pod(pod)
            return
        if observe_worker(pod).obstacle == observe_worker({**pod, "status": kubelet.unschedulable()}).obstacle:
            self.short.add(identity(pod)[0])
        if "running" in state or "terminated" in state:
            self.started.setdefault(self.runs(name), set()).add(index)
        if "running" not in state:
            self.launchers.pop(uid, None)
        elif uid not in self.launchers and observe_worker(pod).supervised:
            self.launchers[uid] = PodState(attempt=identity(pod)[0])
        self._store_pod(pod)

    def runs(self, name: str) -> int:
        """Attempt that the processes in a pod take part in."""
        pod = self.pods[name]
        launcher = self.launchers.get(pod["metadata"]["uid"])
        return launcher.attempt if launcher else self.last_run.get(pod["metadata"]["uid"], identity(pod)[0])

    def fail_inside(self, name: str, code: int, words: str = "") -> None:
        """The user's program fails, but the pod lives and waits for orders."""
        uid, attempt = self.pods[name]["metadata"]["uid"], self.runs(name)
        self.failed.add(attempt)
        self.launchers[uid] = PodState(attempt=attempt, exit_info=ExitInfo(exit_code=code, message=words, at=self.now))
        self._store_pod({**self.pods[name], "status": kubelet.running(self.now, ready=False)})

    def is_held(self, name: str) -> bool:
        """Whether a pod waits for orders."""
        launcher = self.launchers.get(self.pods[name]["metadata"]["uid"])
        return launcher is not None and launcher.exit_info is not None

    def release(self, name: str) -> None:
        """A launcher ends with the code of its processes."""
        launcher = self.launchers[self.pods[name]["metadata"]["uid"]]
        assert launcher.exit_info is not None
        self.last_run[self.pods[name]["metadata"]["uid"]] = launcher.attempt
        self.set_pod(name, kubelet.ended(self.now, launcher.exit_info.exit_code, message=launcher.exit_info.message))

    def restart_in_place(self, name: str, attempt: int) -> PodState:
        """A launcher starts another attempt, and the kubelet sees that it is ready."""
        pod = self.pods[name]
        state = self.launchers[pod["metadata"]["uid"]] = PodState(attempt=attempt)
        self.last_run[pod["metadata"]["uid"]] = attempt
        self.started.setdefault(attempt, set()).add(identity(pod)[1])
        self._store_pod({**pod, "status": kubelet.running(self.now)})
        return state

    def fail_pod(self, name: str, code: int, words: str = "") -> None:
        """The user's program fails."""
        self.failed.add(self.runs(name))
        self.set_pod(name, kubelet.ended(self.now, code, message=words))

    def train(self, attempt: int, steps: int, *, start: int, stall: float) -> None:
        """An attempt makes steps, after those that its checkpoint had, and waits for checkpoints."""
        page = self.pages.get(attempt) or Progress(attempt=attempt, step=start, resumed_step=start)
        stalled = (page.checkpoint_stall_seconds or 0.0) + stall
        self.pages[attempt] = page.replace(step=page.step + steps, checkpoint_stall_seconds=stalled)

    def mark_deleted(self, name: str) -> None:
        """Somebody deletes a pod: it goes on until its kubelet has stopped it."""
        pod = deepcopy(self.pods[name])
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = kubelet.zulu(self.now + timedelta(seconds=GRACE))
            self._store_pod(pod)

    def lose_node(self, name: str) -> None:
        """The node of a pod is gone; the cluster deletes the pod, and that never ends."""
        self.lost.add(self.pods[name]["metadata"]["uid"])
        self.mark_deleted(name)

    def remove_pod(self, name: str) -> None:
        """The pod is gone."""
        self.version += 1
        self.pod_stream.append(("DELETED", self.pods.pop(name)))

    # --- storage --------------------------------------------------------------------------------------------

    def _store_job(self, job: TrainingJob, *, generation: int | None = None) -> TrainingJob:
        self.version += 1
        update: dict[str, Any] = {"resource_version": str(self.version)}
        if generation is not None:
            update["generation"] = generation
        self.job = job.replace(metadata=job.metadata.model_copy(update=update))
        self.job_stream.append(("MODIFIED", self.job))
        return self.job

    def _store_pod(self, pod: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        stored = {**pod, "metadata": {**pod["metadata"], "resourceVersion": str(self.version)}}
        self.pods[pod["metadata"]["name"]] = stored
        self.pod_stream.append(("MODIFIED", stored))
        return stored

    def _burn(self, *, after: bool) -> None:
        """Crash, if it is time to."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0 and (self.fuse == 0 or after):
                self.fuse = None
                raise Crash

    # --- the judge ------------------------------------------------------------------------------------------

    def judge_status(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """What a status may say, given the one before and what has really happened."""
        assert self.job is not None
        TrainingJobStatus.model_validate(new.to_dict())
        judge_goodput(old, new, self.now)
        limit, pods = self.job.spec.restart_policy.max_restarts, self.job.replace(status=new).current.spec.pods
        assert new.attempt >= old.attempt, "the attempt went back"
        assert new.restarts >= old.restarts, "restarts were forgotten"
        assert old.restarts_counted <= new.restarts_counted <= limit, "the budget was overdrawn, or forgotten"
        if new.restarts_counted > old.restarts_counted:
            self._judge_charge(old, new)
        self._judge_size(old, new)
        if old.finished:
            same = old.replace(workers=new.workers, observed_generation=new.observed_generation)
            assert new == same, "a finished job changed"
        if new.is_true(ConditionType.RUNNING) and not old.is_true(ConditionType.RUNNING):
            assert len(self.started.get(new.attempt, ())) >= pods, "said to run before every worker ran"
        if new.is_true(ConditionType.SUCCEEDED) and not old.finished:
            workers = {name: pod for name, pod in self.pods.items() if not observe_worker(pod).placeholder}
            done = [name for name, pod in workers.items() if pod["status"]["phase"] == "Succeeded"]
            assert sum(self.runs(name) == new.attempt for name in done) >= pods, "said to have succeeded too early"

    def _judge_charge(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """A restart was charged: the program has failed, or the user wants it so."""
        assert self.job is not None
        assert new.last_failure is not None
        rules, failure = self.job.spec.restart_policy.rules, new.last_failure
        if failure.reason == Reason.STARTUP_TIMEOUT:
            page = self.pages.get(old.attempt)
            assert page is None or page.steps_made == 0, "a group that trains was taken for one that does not start"
            self.failed.add(old.attempt)
        wanted = any(r.action == "Restart" and failure.reason in (r.on_reasons or ()) for r in rules)
        assert wanted or old.attempt in self.failed, "a restart was charged for what was not the program's fault"
        free = any(r.action == "RestartIgnoringLimit" and failure.exit_code in (r.on_exit_codes or ()) for r in rules)
        assert not free, "a restart was charged that a rule makes free"

    def _judge_size(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """With how many workers a group may go on."""
        assert self.job is not None
        before, after = (self.job.replace(status=status).current.spec.workers.replicas for status in (old, new))
        if after < before:
            assert self.job.spec.elastic is not None, "a group was made smaller that may not be"
            assert after >= self.job.spec.elastic.min_replicas, "a group was made smaller than it may be"
            runs = new.attempt == old.attempt and old.is_true(ConditionType.RUNNING)  # more are wanted than before
            assert runs or old.attempt in self.short, "a group was made smaller that had room"
        if after > before and not old.is_true(ConditionType.SUSPENDED):
            assert old.pod_attempt in self.roomy, "a group was made larger without room"
        if after != before and new.attempt > old.attempt:
            assert new.restarts_counted == old.restarts_counted, "a change of the size was charged"

    def judge_order(self, attempt: int) -> None:
        """When an attempt may be started inside a pod."""
        assert self.job is not None
        status = self.job.status
        assert attempt == status.attempt, "an attempt was started in a pod that is not written down"
        assert not status.finished, "an attempt was started in a pod of a finished job"
        assert not status.is_true(ConditionType.SUSPENDED), "an attempt was started in a pod of a suspended job"

    def judge_release(self, state: PodState) -> None:
        """When a pod may be told to end."""
        assert self.job is not None
        assert self.job.status.finished, "a pod was told to end though its job goes on"
        assert state.exit_info is not None, "a pod was told to end whose processes run"

    def judge_force(self, pod: dict[str, Any]) -> None:
        """When a pod may be deleted without its kubelet."""
        assert self.job is not None
        due = pod["metadata"].get("deletionTimestamp")
        assert due is not None, "a pod was deleted by force that nobody had asked to end"
        late = (self.now - datetime.fromisoformat(due)).total_seconds()
        assert late > MARGIN, f"a pod was deleted by force {late:g} s after its grace period"
        assert identity(pod)[0] < self.job.status.attempt, "a pod was deleted by force for which nobody waits"

    def judge_creation(self, pod: dict[str, Any]) -> None:
        """When a pod may be created."""
        assert self.job is not None
        attempt, _ = identity(pod)
        status = self.job.status
        if observe_worker(pod).placeholder:
            assert attempt == status.pod_attempt, "room was sought for a group that there is not"
            assert self.job.current.spec != self.job.spec, "room was sought for a group that lacks nobody"
        else:
            self._judge_replicas(pod)
            assert attempt == status.attempt, "a pod was created whose attempt is not written down"
        others = [name for name, other in self.pods.items() if identity(other)[0] != attempt]
        assert not others, f"a pod of attempt {attempt} was created while {others} exist"
        assert not self.job.status.finished, "a pod was created for a finished job"
        assert not self.job.status.is_true(ConditionType.SUSPENDED), "a pod was created for a suspended job"

    def _judge_replicas(self, pod: dict[str, Any]) -> None:
        """Pods of one attempt are all made for one size, and for no larger one than is written down."""
        assert self.job is not None
        made_for, known = observe_worker(pod).replicas, self.job.status.elastic
        peers = [w for w in map(observe_worker, self.pods.values()) if w.attempt == identity(pod)[0]]
        assert {w.replicas for w in peers if not w.placeholder} <= {made_for}, "sizes were mixed"
        assert not known or made_for <= (known.replicas or made_for), "a pod was made for too large a group"


class WorldBackend:
    """The operator's hands in that world (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _ask(self, job: TrainingJob) -> TrainingJob:
        if self.world.silent:
            raise Unavailable("no answer")
        stored = self.world.job
        if stored is None or stored.metadata.uid != job.metadata.uid:
            raise Gone("no such job")
        return stored

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        stored = self._ask(job)
        self.world._burn(after=False)
        if stored.metadata.resource_version != job.metadata.resource_version:
            raise Stale("the object has been modified")
        self.world.judge_status(stored.status, status)
        answer = self.world._store_job(stored.replace(status=status))
        self.world._burn(after=True)
        return answer

    async def list_pods(self, job: TrainingJob) -> list[Pod]:
        self._ask(job)
        return [p for p in self.world.pods.values() if owner_uid(p) == job.metadata.uid]

    async def create(self, job: TrainingJob, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._create_one(job, manifest) for manifest in manifests]

    def _create_one(self, job: TrainingJob, manifest: dict[str, Any]) -> dict[str, Any]:
        self._ask(job)
        world, name = self.world, manifest["metadata"]["name"]
        world._burn(after=False)
        if manifest["kind"] != "Pod":
            return world.children.setdefault((manifest["kind"], name), manifest)
        if name in world.pods:
            return world.pods[name]
        if world.quota:
            if manifest["metadata"]["labels"][constants.LABEL_ROLE] != constants.ROLE_PLACEHOLDER:
                world.short.add(identity(manifest)[0])
            raise Refused(Reason.PODS_REFUSED, "exceeded quota")
        pod = deepcopy(manifest)
        pod["metadata"]["uid"] = f"pod-{world.created + 1}"
        world.judge_creation(pod)
        world.created += 1
        answer = world._store_pod({**pod, "status": kubelet.scheduled()})
        world._burn(after=True)
        return answer

    async def delete_pods(self, job: TrainingJob, workers: Sequence[Worker], *, force: bool = False) -> None:
        for worker in workers:
            self._ask(job)
            self.world._burn(after=False)
            pod = self.world.pods.get(worker.name)
            if pod is not None and pod["metadata"]["uid"] == worker.uid:
                if force:
                    self.world.judge_force(pod)
                    self.world.remove_pod(worker.name)
                else:
                    self.world.mark_deleted(worker.name)
            self.world._burn(after=True)

    async def tell(self, job: TrainingJob, event: Event) -> None:
        self.world._burn(after=False)
        self.world.events.append(event)

    def token(self, job: TrainingJob) -> str:
        return "token"

    async def ask(self, job: TrainingJob, pods: Sequence[Pod]) -> list[PodState | None]:
        return [self._launcher(pod) for pod in pods]

    async def order(self, job: TrainingJob, pods: Sequence[Pod], attempt: int | None) -> list[PodState | None]:
        return [self._order_one(pod, attempt) for pod in pods]

    def _order_one(self, pod: Pod, attempt: int | None) -> PodState | None:
        world, name = self.world, pod["metadata"]["name"]
        world._burn(after=False)
        state = self._launcher(pod)
        if state is None or name in world.deaf:
            return None
        if attempt is None:
            world.judge_release(state)
            world.release(name)
        elif attempt > state.attempt:
            world.judge_order(attempt)
            state = world.restart_in_place(name, attempt)
        world._burn(after=True)
        return state

    def _launcher(self, pod: Pod) -> PodState | None:
        """What the launcher in a pod says, if the pod is still there and runs."""
        known = self.world.pods.get(pod["metadata"]["name"])
        if known is None or known["metadata"]["uid"] != pod["metadata"]["uid"]:
            return None
        return self.world.launchers.get(pod["metadata"]["uid"])

    def metrics_url(self, pod: Pod) -> str | None:
        return None


def judge_goodput(old: TrainingJobStatus, new: TrainingJobStatus, now: datetime) -> None:
    """The parts of the wall time add up to it, and none shrinks."""
    if new.start_time is None:
        assert new.goodput is None
        return
    assert new.goodput is not None, "the time is not accounted for"
    parts, end = new.goodput.parts(), new.completion_time or now.replace(microsecond=0)
    assert sum(parts.values()) == (end - new.start_time).total_seconds(), "the parts do not add up to the wall time"
    before = old.goodput.parts() if old.goodput else dict.fromkeys(parts, 0)
    assert all(parts[name] >= before[name] for name in parts), "time that was accounted for has shrunk"


def identity(pod: Pod) -> tuple[int, int]:
    """Attempt and index of a pod."""
    labels = pod["metadata"]["labels"]
    return int(labels[constants.LABEL_ATTEMPT]), int(labels[constants.LABEL_INDEX])
