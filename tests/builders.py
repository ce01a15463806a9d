"""Objects for tests: a valid one by default, and each test says only what matters to it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support import kubelet
from trainyard.protocol.progress import Progress
from trainyard.protocol.termination import TerminationMessage
from trainyard.resource.job import TrainingJob
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState
from trainyard_operator.manifests.pod import build_pod

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
TRAINER_IMAGE = "example.com/trainyard-trainer:test"
GRACE = 30
"""Seconds that a pod has to end once its deletion was asked for: the default of Kubernetes."""


def after(seconds: float) -> datetime:
    """A moment that many seconds after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def trainer_spec(**changes: Any) -> dict[str, Any]:
    """`spec.trainer`, as short as it may be."""
    return {
        "model": {"name": "llama", "preset": "nano"},
        "data": {"source": "text", "builtin": "python-stdlib"},
        "batch": {"global": 16},
        "stop": {"steps": 100},
        **changes,
    }


def served() -> dict[str, Any]:
    """Fields of a spec whose one to three workers have a parameter server."""
    data = {"mode": "parameterServer"}
    return {"trainer": trainer_spec(batch={"global": 12}), "parallelism": {"data": data}}


def elastic(least: int = 1, *, batch: int = 12, **fields: Any) -> dict[str, Any]:
    """Fields of a spec whose group may shrink; the batch suits one to four workers."""
    return {
        "trainer": trainer_spec(batch={"global": batch}),
        "checkpoint": {"claim": {"size": "1Gi"}},
        "elastic": {"minReplicas": least, "resizeAfterSeconds": 60, **fields},
    }


def make_manifest(
    name: str = "job",
    *,
    replicas: int = 2,
    trainer: dict[str, Any] | None = None,
    workers: dict[str, Any] | None = None,
    namespace: str = "default",
    **spec: Any,
) -> dict[str, Any]:
    """What a user applies. Other arguments are fields of the spec; without `trainer` it runs a command."""
    program: dict[str, Any] = {"trainer": trainer} if trainer else {"image": kubelet.IMAGE, "command": ["train"]}
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"workers": {"replicas": replicas, **(workers or {})}, **program, **spec},
    }


def make_job(
    name: str = "job",
    *,
    uid: str = "uid-1",
    version: int = 1,
    generation: int = 1,
    status: dict[str, Any] | None = None,
    **manifest: Any,
) -> TrainingJob:
    """A job as the API server returns it; the rest of the arguments are those of `make_manifest`."""
    body = make_manifest(name, **manifest)
    body["metadata"] |= {"uid": uid, "generation": generation, "resourceVersion": str(version)}
    job = TrainingJob.from_dict({**body, "status": status or {}})
    assert job.unknown_fields == (), "a typo in a test"
    return job


def make_pod(
    job: TrainingJob,
    index: int = 0,
    *,
    attempt: int = 1,
    status: kubelet.Status | None = None,
    uid: str = "",
    version: int = 1,
    terminating: bool = False,
    node: str | None = "node-1",
) -> dict[str, Any]:
    """A pod of a job as the API server returns it, with a status from `tests.support.kubelet`."""
    pod = build_pod(job, attempt, index, trainer_image=TRAINER_IMAGE)
    pod["metadata"] |= {"uid": uid or f"pod-{attempt}-{index}", "resourceVersion": str(version)}
    if terminating:
        pod["metadata"]["deletionTimestamp"] = kubelet.zulu(after(GRACE))
    if node:
        pod["spec"]["nodeName"] = node
    return {**pod, "status": kubelet.scheduled() if status is None else status}


def make_worker(
    index: int = 0,
    *,
    attempt: int = 1,
    state: str = "Running",
    replicas: int = 2,
    terminating: bool = False,
    **fields: Any,
) -> WorkerPod:
    """One worker as a plan sees it. `terminating`: its deletion was asked for at `NOW`."""
    if terminating:
        fields.setdefault("deletion_deadline", after(GRACE))
    fields.setdefault("exit_code", {"Succeeded": 0, "Failed": 1}.get(state))
    if state in ("Succeeded", "Failed"):
        fields.setdefault("finished_at", NOW)
        fields.setdefault("ended", not fields.get("awaiting_restart", False))
    return WorkerPod(
        name=f"job-{attempt}-{index}",
        uid=f"pod-{attempt}-{index}",
        attempt=attempt,
        index=index,
        replicas=replicas,
        state=WorkerState(state),
        running_attempt=fields.pop("running_attempt", attempt),
        **fields,
    )


def termination_message(**fields: Any) -> str:
    """The termination message of a worker of the built-in trainer."""
    return TerminationMessage(**fields).encode()


def make_progress(step: int = 10, **fields: Any) -> Progress:
    """Figures from rank 0."""
    return Progress(**{"attempt": 1, "step": step, "total_steps": 100, "loss": 2.5, "updated_at": NOW, **fields})
