"""What the status says of a group of pods: the conditions of one that runs or does not yet, counts, sentences."""

from datetime import timedelta

from trainyard.protocol.progress import Progress
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason, WorkerCounts
from trainyard_operator.lifecycle.degradation import tell_mishaps
from trainyard_operator.lifecycle.observation import Observation, Obstacle, Worker, WorkerState
from trainyard_operator.lifecycle.startup_timeout import has_stepped, tell_startup
from trainyard_operator.lifecycle.status_builder import Draft


def count_workers(job: TrainingJob, workers: tuple[Worker, ...]) -> WorkerCounts:
    """The workers by what they do; the parameter server is none of them."""
    workers = tuple(w for w in workers if not w.serves)
    states = [w.state for w in workers]
    return WorkerCounts(
        desired=0 if job.spec.suspend else job.spec.workers.replicas,
        running=states.count(WorkerState.RUNNING),
        ready=sum(w.ready and w.state is WorkerState.RUNNING for w in workers),
        succeeded=states.count(WorkerState.SUCCEEDED),
        failed=states.count(WorkerState.FAILED),
    )


def set_running(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> None:
    """All workers run: say so, and how far they are."""
    attempt, spec = draft.status.attempt, draft.job.spec
    noun = "worker runs" if spec.pods == 1 else "workers run" if not spec.servers else "workers and their server run"
    message = f"attempt {attempt}: {spec.workers.replicas} {noun}"
    draft.set(C.RUNNING, True, Reason.ALL_WORKERS_RUNNING, message, event="Normal")
    draft.clear(C.RESTARTING, Reason.RESTARTED, f"attempt {attempt} runs")
    if seen.progress is not None and seen.progress.attempt == attempt and seen.progress.step > 0:
        tell_mishaps(draft, seen.progress, workers)
        draft.update(progress=seen.progress)
    if spec.trainer is None and draft.status.progress is None:
        return  # a program that does not say how far it is
    if has_stepped(draft.status):
        draft.set(C.PROGRESSING, True, Reason.STEPPING, f"attempt {attempt} makes steps")
    else:
        draft.set(C.PROGRESSING, False, Reason.NO_STEP_YET, tell_startup(draft, seen.progress))


def set_waiting(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> None:
    """Say what keeps the group from running: the first obstacle, and how many workers it holds up."""
    wanted = draft.job.spec.pods
    noun = "pods" if draft.job.spec.servers else "workers"
    obstacles: list[Obstacle] = [w.obstacle for w in workers if w.obstacle]
    if seen.trouble:
        draft.set(C.RUNNING, False, seen.trouble.reason, seen.trouble.message, event="Warning")
    elif obstacles:
        rank = (Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG, Reason.UNSCHEDULABLE)
        first = min(obstacles, key=lambda o: rank.index(o.reason))
        affected = sum(o.reason is first.reason for o in obstacles)
        message = f"{affected} of {wanted} {noun}: {first.message}"
        draft.set(C.RUNNING, False, first.reason, message, event="Warning")
    else:
        running = sum(w.state is not WorkerState.PENDING for w in workers)
        draft.set(C.RUNNING, False, Reason.WAITING_FOR_PODS, f"{running} of {wanted} {noun} run")


def tell_overdue(worker: Worker, patience: timedelta) -> str:
    """Why a pod is deleted by force."""
    late = f"{patience.total_seconds():.0f} s after its grace period"
    return f"pod {worker.name} has not ended {late}, so node {worker.node} is taken for lost; deleting the pod by force"


def tell_reached(progress: Progress | None) -> str:
    """How far a job has come, as the end of a sentence."""
    if progress is None:
        return ""
    loss = f", loss {progress.loss:.4f}" if progress.loss is not None else ""
    return f" at step {progress.step}{loss}"
