"""A fake cluster for the controller: an API server in memory that knows what really happened to one job.

It checks every write: what the operator must never do raises an `AssertionError` at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from yarl import URL

from tests.builders import GRACE, NOW, make_job
from tests.support import kubelet
from trainyard.protocol import constants
from trainyard.protocol.launcher_state import ExitInfo, PodState
from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason, TrainingJobStatus
from trainyard_operator.controller.backend import Gone, OnCreated, Refused, Stale, Unavailable, ignore
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, observe_pod, owner_uid
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.lifecycle.successes import parse_indexes

MARGIN = 30
"""Seconds after its grace period before a pod may be deleted by force."""

Change = tuple[str, Any]
"""What a watch stream delivers: ADDED/MODIFIED or DELETED, and the object."""


class Crash(BaseException):
    """Raised where the operator's process is killed, which no handler of exceptions can catch."""


class FakeCluster:
    """etcd, the API server, the kubelets and the users of one job."""

    def __init__(self, *, of: TrainingJob | None = None, **spec: Any) -> None:
        self.now: datetime = NOW
        self.version = 1
        self.job: TrainingJob | None = of or make_job(**spec)
        self.pods: dict[str, dict[str, Any]] = {}
        self.children: dict[tuple[str, str], dict[str, Any]] = {}
        self.job_stream: list[Change] = []
        self.pod_stream: list[Change] = []
        self.created = 0
        self.events: list[Event] = []
        # What really happened, by attempt.
        self.started: dict[int, set[int]] = {}
        self.succeeded: dict[int, set[int]] = {}
        self.failed: set[int] = set()
        self.last_run: dict[str, int] = {}
        """Attempt that the processes in a pod took part in last, by UID, where it differs from the pod's own."""
        self.pages: dict[int, Progress] = {}
        """Rank 0's metrics page, by attempt."""
        self.launchers: dict[str, PodState] = {}
        """States of the launchers in running pods, by UID."""
        self.unresponsive: set[str] = set()
        """Names of pods whose launcher rejects restart requests."""
        self.unschedulable: set[int] = set()
        """Attempts with a pod that was unschedulable."""
        self.capacity_proven: set[int] = set()
        """Attempts with a placeholder that has run."""
        self.lost: set[str] = set()
        """UIDs of pods on a lost node: no kubelet ever reports their end."""
        self.revisions: dict[str, dict[str, Any]] = {}
        """Snapshots of specs, by name."""
        self.dry_runs = self.loads = 0
        """Pods that were dry-run, and snapshots that were read."""
        self.unreadable: list[str] = []
        """Problems of unreadable jobs that were reported."""
        # Faults.
        self.refuses_status = False
        self.malformed: str | None = None
        """Why the API server refuses the pods in a dry run."""
        self.queue_problem: str | None = None
        """Why the queue of the job cannot be used."""
        self.revisions_refused = ""
        """Why the API server refuses snapshots."""
        self.quota_exceeded = False
        self.unavailable = False
        self.violation: AssertionError | None = None
        """What the operator must never do and has done in a call to a launcher."""
        self.writes_until_crash: int | None = None
        """Writes until the operator crashes; odd: after the write, even: before it."""

    # --- what users and kubelets do -------------------------------------------------------------------------

    def edit(self, **changes: Any) -> None:
        """Change the spec, as a user does."""
        assert self.job is not None
        spec = self.job.spec
        if "replicas" in changes:
            spec = spec.replace(workers=spec.workers.replace(replicas=changes.pop("replicas")))
        generation = self.job.metadata.generation + 1
        self._store_job(self.job.replace(spec=spec.replace(**changes)), generation=generation)

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def set_pod(self, name: str, status: kubelet.Status) -> None:
        """Store a pod status, as a kubelet does."""
        pod = {**self.pods[name], "status": status}
        index, uid = identity(pod)[1], pod["metadata"]["uid"]
        state = status.get("containerStatuses", [{}])[0].get("state", {})
        if observe_pod(pod).is_placeholder:
            if "running" in state:
                self.capacity_proven.add(identity(pod)[0])
            self._store_pod(pod)
            return
        if observe_pod(pod).blocker == observe_pod({**pod, "status": kubelet.unschedulable()}).blocker:
            self.unschedulable.add(identity(pod)[0])
        if "running" in state or "terminated" in state:
            self.started.setdefault(self.running_attempt(name), set()).add(index)
        if state.get("terminated", {}).get("exitCode") == 0:
            self.succeeded.setdefault(self.running_attempt(name), set()).add(index)
        if "running" not in state:
            self.launchers.pop(uid, None)
        elif uid not in self.launchers and observe_pod(pod).has_launcher:
            self.launchers[uid] = PodState(attempt=identity(pod)[0])
        self._store_pod(pod)

    def running_attempt(self, name: str) -> int:
        """Return the attempt that the processes in a pod take part in."""
        pod = self.pods[name]
        launcher = self.launchers.get(pod["metadata"]["uid"])
        return launcher.attempt if launcher else self.last_run.get(pod["metadata"]["uid"], identity(pod)[0])

    def fail_inside(self, name: str, code: int, words: str = "") -> None:
        """Let the ranks in a pod fail, while its launcher stays alive and awaits a restart."""
        uid, attempt = self.pods[name]["metadata"]["uid"], self.running_attempt(name)
        self.failed.add(attempt)
        self.launchers[uid] = PodState(attempt=attempt, exit_info=ExitInfo(exit_code=code, message=words, at=self.now))
        self._store_pod({**self.pods[name], "status": kubelet.running(self.now, ready=False)})

    def awaits_restart(self, name: str) -> bool:
        """Return whether the launcher in a pod awaits a restart."""
        launcher = self.launchers.get(self.pods[name]["metadata"]["uid"])
        return launcher is not None and launcher.exit_info is not None

    def release(self, name: str) -> None:
        """Let a launcher exit with the code of its ranks."""
        launcher = self.launchers[self.pods[name]["metadata"]["uid"]]
        assert launcher.exit_info is not None
        self.last_run[self.pods[name]["metadata"]["uid"]] = launcher.attempt
        self.set_pod(name, kubelet.ended(self.now, launcher.exit_info.exit_code, message=launcher.exit_info.message))

    def restart_in_place(self, name: str, attempt: int) -> PodState:
        """Let a launcher start another attempt, which makes its pod ready."""
        pod = self.pods[name]
        state = self.launchers[pod["metadata"]["uid"]] = PodState(attempt=attempt)
        self.last_run[pod["metadata"]["uid"]] = attempt
        self.started.setdefault(attempt, set()).add(identity(pod)[1])
        self._store_pod({**pod, "status": kubelet.running(self.now)})
        return state

    def fail_pod(self, name: str, code: int, words: str = "") -> None:
        """Let the user's program fail."""
        self.failed.add(self.running_attempt(name))
        self.set_pod(name, kubelet.ended(self.now, code, message=words))

    def train(self, attempt: int, steps: int, *, start: int, stall: float) -> None:
        """Let an attempt make steps after those of its checkpoint, and wait for checkpoints."""
        page = self.pages.get(attempt) or Progress(attempt=attempt, step=start, resumed_step=start)
        stalled = (page.checkpoint_stall_seconds or 0.0) + stall
        self.pages[attempt] = page.replace(step=page.step + steps, checkpoint_stall_seconds=stalled)

    def mark_deleted(self, name: str) -> None:
        """Delete a pod with a grace period: it terminates until its kubelet has stopped it."""
        pod = deepcopy(self.pods[name])
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = kubelet.zulu(self.now + timedelta(seconds=GRACE))
            self._store_pod(pod)

    def lose_node(self, name: str) -> None:
        """Lose the node of a pod: the cluster deletes the pod, which never terminates."""
        self.lost.add(self.pods[name]["metadata"]["uid"])
        self.mark_deleted(name)

    def remove_pod(self, name: str) -> None:
        """Remove a pod."""
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

    def _count_write(self, *, after: bool) -> None:
        """Count a write, and crash if it was the last one."""
        if self.writes_until_crash is not None:
            self.writes_until_crash -= 1
            if self.writes_until_crash <= 0 and (self.writes_until_crash == 0 or after):
                self.writes_until_crash = None
                raise Crash

    # --- what the operator may write ------------------------------------------------------------------------

    def check_status(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Check a new status against the previous one and what really happened."""
        assert self.job is not None
        TrainingJobStatus.model_validate(new.to_dict())
        check_goodput(old, new, self.now)
        limit, pods = self.job.spec.restart_policy.max_restarts, self.job.replace(status=new).effective_job.spec.pods
        assert new.attempt >= old.attempt, "the attempt went back"
        assert new.restarts >= old.restarts, "restarts were forgotten"
        assert old.restarts_counted <= new.restarts_counted <= limit, (
            "the restart limit was exceeded, or counted restarts were forgotten"
        )
        assert new.disruptions <= self.job.spec.restart_policy.max_disruptions, "the disruption limit was exceeded"
        if new.restarts_counted > old.restarts_counted:
            self._check_counted_restart(old, new)
        self._check_size(old, new)
        if new.is_true(ConditionType.SUSPENDED) and not old.is_true(ConditionType.SUSPENDED):
            assert self.pods == {}, "reported Suspended while pods exist"
        if old.finished:
            same = old.replace(workers=new.workers, observed_generation=new.observed_generation)
            assert new == same, "a finished job changed"
        if new.is_true(ConditionType.RUNNING) and not old.is_true(ConditionType.RUNNING):
            assert len(self.started.get(new.attempt, ())) >= pods, "reported Running before every worker ran"
        if new.is_true(ConditionType.SUCCEEDED) and not old.finished:
            assert len(self.succeeded.get(new.attempt, ())) >= pods, "reported Succeeded too early"
        assert old.running_seconds <= new.running_seconds, "time that the workers ran was forgotten"
        if new.start_time is not None:
            assert new.running_seconds <= (self.now - new.start_time).total_seconds(), "they never ran for so long"
        self._check_timeout(old, new)
        self._check_successes(old, new)

    def _check_timeout(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Check that only a group that is not complete is given up, and that this is no restart."""
        timeouts = [status.scheduling.timeouts if status.scheduling else 0 for status in (old, new)]
        if new.attempt == old.attempt or timeouts[1] <= timeouts[0]:
            return
        assert self.job is not None
        assert not old.is_true(ConditionType.RUNNING), "a group that runs was given up"
        assert (new.restarts, new.disruptions) == (old.restarts, old.disruptions), "a timeout was counted"
        limit, scheduling = self.job.spec.scheduling_timeout_seconds, old.scheduling
        assert limit is not None
        assert scheduling is not None
        assert scheduling.waiting_since is not None
        assert (self.now - scheduling.waiting_since).total_seconds() >= limit, "a group was given up too early"

    def _check_successes(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Check that only real successes are remembered, and that none is forgotten or repeated."""
        remembered, before = parse_indexes(new.succeeded_indexes), parse_indexes(old.succeeded_indexes)
        assert remembered <= self.succeeded.get(new.attempt, set()), "a success was invented"
        if (new.attempt, new.pod_attempt) == (old.attempt, old.pod_attempt):
            assert remembered >= before, "a success was forgotten"
        elif new.last_failure != old.last_failure and new.last_failure and new.last_failure.reason == "WorkerLost":
            assert self.job is not None
            pods = [observe_pod(pod) for pod in self.pods.values()]
            there = {w.index for w in pods if w.attempt == old.pod_attempt and not w.is_placeholder}
            needed = set(range(self.job.replace(status=old).effective_job.spec.pods))
            assert needed - there - before, "a pod that has succeeded was missed"

    def _check_counted_restart(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Check that a restart may be counted: the program failed, or a rule of the user says so."""
        assert self.job is not None
        assert new.last_failure is not None
        rules, failure = self.job.spec.restart_policy.rules, new.last_failure
        if failure.reason == Reason.STARTUP_TIMEOUT:
            page = self.pages.get(old.attempt)
            assert page is None or page.steps_made == 0, "a group that makes steps failed the startup timeout"
            self.failed.add(old.attempt)
        wanted = any(r.action == "Restart" and failure.reason in (r.on_reasons or ()) for r in rules)
        assert wanted or old.attempt in self.failed, "a restart was counted that was not the program's fault"
        free = any(r.action == "RestartIgnoringLimit" and failure.exit_code in (r.on_exit_codes or ()) for r in rules)
        assert not free, "a restart was counted that a rule excludes"

    def _check_size(self, old: TrainingJobStatus, new: TrainingJobStatus) -> None:
        """Check that a group may continue with another number of workers."""
        assert self.job is not None
        before, after = (self.job.replace(status=status).effective_job.spec.workers.replicas for status in (old, new))
        if after < before:
            assert self.job.spec.elastic is not None, "a group was shrunk that is not elastic"
            assert after >= self.job.spec.elastic.min_replicas, "a group was shrunk below its minimum"
            runs = new.attempt == old.attempt and old.is_true(ConditionType.RUNNING)  # more are wanted than before
            assert runs or old.attempt in self.unschedulable, "a group was shrunk without need"
        if after > before and not (old.is_true(ConditionType.SUSPENDED) or old.suspending):
            assert old.pod_attempt in self.capacity_proven, "a group was grown without capacity"
        if after != before and new.attempt > old.attempt:
            assert new.restarts_counted == old.restarts_counted, "a change of the size was counted"

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Remember what a check raises, since the operator survives errors in its calls to launchers."""
        try:
            yield
        except AssertionError as violation:
            self.violation = violation
            raise

    def check_restart_request(self, attempt: int) -> None:
        """Check that an attempt may be started inside a pod."""
        assert self.job is not None
        status = self.job.status
        assert attempt == status.attempt, "an attempt was started in a pod that is not recorded"
        assert not status.finished, "an attempt was started in a pod of a finished job"
        suspended = status.is_true(ConditionType.SUSPENDED) or status.suspending
        assert not suspended, "an attempt was started in a pod of a suspended job"

    def check_release(self, state: PodState) -> None:
        """Check that a launcher may be asked to exit."""
        assert self.job is not None
        assert self.job.status.finished, "a pod was released although its job continues"
        assert state.exit_info is not None, "a pod was released whose processes run"

    def check_forced_deletion(self, pod: dict[str, Any]) -> None:
        """Check that a pod may be deleted by force."""
        assert self.job is not None
        due = pod["metadata"].get("deletionTimestamp")
        assert due is not None, "a pod was deleted by force without a deletion before"
        late = (self.now - datetime.fromisoformat(due)).total_seconds()
        assert late > MARGIN, f"a pod was deleted by force {late:g} s after its grace period"
        assert identity(pod)[0] < self.job.status.attempt, "a pod was deleted by force that no attempt waits for"

    def check_creation(self, pod: dict[str, Any]) -> None:
        """Check that a pod may be created."""
        assert self.job is not None
        attempt, _ = identity(pod)
        status = self.job.status
        if observe_pod(pod).is_placeholder:
            assert attempt == status.pod_attempt, "a placeholder was created for a group that does not exist"
            assert self.job.effective_job.spec != self.job.spec, (
                "a placeholder was created for a group that is complete"
            )
        else:
            self._check_replicas(pod)
            assert attempt == status.attempt, "a pod was created whose attempt is not recorded"
        self._check_revision(pod)
        others = [name for name, other in self.pods.items() if identity(other)[0] != attempt]
        assert not others, f"a pod of attempt {attempt} was created while {others} exist"
        assert not self.job.status.finished, "a pod was created for a finished job"
        suspended = self.job.status.is_true(ConditionType.SUSPENDED) or self.job.status.suspending
        assert not suspended, "a pod was created for a suspended job"

    def _check_revision(self, pod: dict[str, Any]) -> None:
        """Check that a pod is built from a snapshot that is stored and recorded."""
        assert self.job is not None
        name = self.job.status.accepted_revision
        assert name in self.revisions, "a pod was created whose spec was not stored before"
        assert name == f"{self.job.metadata.name}-{pod['metadata']['labels'][constants.LABEL_REVISION]}"

    def _check_replicas(self, pod: dict[str, Any]) -> None:
        """Check that all pods of an attempt are created for one size, which is not larger than the recorded one."""
        assert self.job is not None
        created_for, known = observe_pod(pod).replicas, self.job.status.elastic
        peers = [w for w in map(observe_pod, self.pods.values()) if w.attempt == identity(pod)[0]]
        assert {w.replicas for w in peers if not w.is_placeholder} <= {created_for}, (
            "pods of one attempt were created for different sizes"
        )
        assert not known or created_for <= (known.replicas or created_for), (
            "a pod was created for a group larger than the recorded one"
        )


class FakeClusterBackend:
    """The backend of the fake cluster (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster

    def _ask(self, job: TrainingJob) -> TrainingJob:
        if self.cluster.unavailable:
            raise Unavailable("no answer")
        stored = self.cluster.job
        if stored is None or stored.metadata.uid != job.metadata.uid:
            raise Gone("no such job")
        return stored

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        stored = self._ask(job)
        self.cluster._count_write(after=False)
        if stored.metadata.resource_version != job.metadata.resource_version:
            raise Stale("the object has been modified")
        self.cluster.check_status(stored.status, status)
        answer = self.cluster._store_job(stored.replace(status=status))
        self.cluster._count_write(after=True)
        return answer

    async def report_unreadable(self, job: UnreadableJob, patch: Mapping[str, Any]) -> bool:
        self.cluster.unreadable.append(job.problem)
        return not self.cluster.refuses_status

    async def dry_run(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        self._ask(job)
        self.cluster.dry_runs += 1
        return self.cluster.malformed

    async def store_revision(self, job: TrainingJob, revision: dict[str, Any]) -> dict[str, Any]:
        self._ask(job)
        self.cluster._count_write(after=False)
        if self.cluster.revisions_refused:
            raise Refused(Reason.PODS_REFUSED, self.cluster.revisions_refused)
        stored = self.cluster.revisions.setdefault(revision["metadata"]["name"], deepcopy(revision))
        self.cluster._count_write(after=True)
        return stored

    async def load_revision(self, job: TrainingJob, name: str) -> dict[str, Any] | None:
        self._ask(job)
        self.cluster.loads += 1
        return self.cluster.revisions.get(name)

    async def list_pods(self, job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
        self._ask(job)
        pods = [p for p in self.cluster.pods.values() if owner_uid(p) == job.metadata.uid]
        return [pod for pod in pods if identity(pod)[0] != other_than]

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        for manifest in manifests:
            on_created(self._create_one(job, manifest))

    def _create_one(self, job: TrainingJob, manifest: dict[str, Any]) -> dict[str, Any]:
        self._ask(job)
        cluster, name = self.cluster, manifest["metadata"]["name"]
        cluster._count_write(after=False)
        if manifest["kind"] != "Pod":
            return cluster.children.setdefault((manifest["kind"], name), manifest)
        if name in cluster.pods:
            return cluster.pods[name]
        if cluster.quota_exceeded:
            if manifest["metadata"]["labels"][constants.LABEL_ROLE] != constants.ROLE_PLACEHOLDER:
                cluster.unschedulable.add(identity(manifest)[0])
            raise Refused(Reason.PODS_REFUSED, "exceeded quota")
        pod = deepcopy(manifest)
        pod["metadata"]["uid"] = f"pod-{cluster.created + 1}"
        cluster.check_creation(pod)
        cluster.created += 1
        answer = cluster._store_pod({**pod, "status": kubelet.scheduled()})
        cluster._count_write(after=True)
        return answer

    async def delete_groups(self, job: TrainingJob, api_version: str, *, other_than: int | None = None) -> None:
        self._ask(job)
        groups = [key for key, body in self.cluster.children.items() if body["apiVersion"] == api_version]
        for key in groups:
            if self.cluster.children[key]["metadata"]["labels"][constants.LABEL_ATTEMPT] != str(other_than):
                del self.cluster.children[key]

    async def find_queue_problem(self, job: TrainingJob, queue: str) -> str | None:
        self._ask(job)
        return self.cluster.queue_problem

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        for worker in workers:
            self._ask(job)
            self.cluster._count_write(after=False)
            pod = self.cluster.pods.get(worker.name)
            if pod is not None and pod["metadata"]["uid"] == worker.uid:
                if force:
                    self.cluster.check_forced_deletion(pod)
                    self.cluster.remove_pod(worker.name)
                else:
                    self.cluster.mark_deleted(worker.name)
            self.cluster._count_write(after=True)

    async def delete_job(self, job: TrainingJob) -> None:
        stored = self._ask(job)
        self.cluster._count_write(after=False)
        if stored.metadata.resource_version != job.metadata.resource_version:
            raise Stale("the object has been modified")
        assert stored.status.finished, "a job was deleted that has not finished"
        self.cluster.job = None
        self.cluster.job_stream.append(("DELETED", stored))
        self.cluster._count_write(after=True)

    async def record_event(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        self.cluster._count_write(after=False)
        self.cluster.events.append(event)

    def launcher_token(self, job: TrainingJob) -> str:
        return "token"

    async def get_launcher_state(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        return self._launcher(worker)

    async def start_attempt(self, job: TrainingJob, worker: WorkerPod, attempt: int) -> PodState | None:
        cluster = self.cluster
        cluster._count_write(after=False)
        state = self._launcher(worker)
        if state is None or worker.name in cluster.unresponsive:
            return None
        if attempt > state.attempt:
            with cluster.judging():
                cluster.check_restart_request(attempt)
            state = cluster.restart_in_place(worker.name, attempt)
        cluster._count_write(after=True)
        return state

    async def release(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        cluster = self.cluster
        cluster._count_write(after=False)
        state = self._launcher(worker)
        if state is None or worker.name in cluster.unresponsive:
            return None
        with cluster.judging():
            cluster.check_release(state)
        cluster.release(worker.name)
        cluster._count_write(after=True)
        return state

    def _launcher(self, worker: WorkerPod) -> PodState | None:
        """Return the state of the launcher in a pod; None if the pod is gone or does not run."""
        known = self.cluster.pods.get(worker.name)
        if known is None or known["metadata"]["uid"] != worker.uid:
            return None
        return self.cluster.launchers.get(worker.uid)

    def metrics_url(self, job: TrainingJob, worker: WorkerPod) -> URL | None:
        return None


def check_goodput(old: TrainingJobStatus, new: TrainingJobStatus, now: datetime) -> None:
    """Check that the parts of the wall time add up to it, and that none shrinks."""
    if new.start_time is None:
        assert new.goodput is None
        return
    assert new.goodput is not None, "the time was not accounted for"
    parts, end = new.goodput.parts(), new.completion_time or now.replace(microsecond=0)
    assert sum(parts.values()) == (end - new.start_time).total_seconds(), "the parts do not add up to the wall time"
    before = old.goodput.parts() if old.goodput else dict.fromkeys(parts, 0)
    assert all(parts[name] >= before[name] for name in parts), "a part of the wall time has shrunk"


def identity(pod: Pod) -> tuple[int, int]:
    """Return the attempt and index of a pod."""
    labels = pod["metadata"]["labels"]
    return int(labels[constants.LABEL_ATTEMPT]), int(labels[constants.LABEL_INDEX])
