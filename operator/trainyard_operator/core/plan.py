"""The life of a job, in one pure function.

`plan` looks at a job and its pods and says what the status is and what to do next. It does no I/O and reads no
clock. It is level-triggered: it may run at any moment, any number of times, on whatever is there.

The ledger rule. What must be remembered (attempt, restarts, first failure, suspension, start and end) is a change
of the status alone: such a plan carries no action, and the next plan, made from the status as it was stored, acts
upon it. So an operator that dies at any moment never repeats or forgets a decision. Numbers of attempts fence: no
pod of an attempt is created while a pod of another one exists.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from trainyard.mesh import make_mesh
from trainyard.resolve import spec_problems
from trainyard.status import ConditionType as C
from trainyard.status import Reason, TrainingJobStatus
from trainyard_operator.core.diagnose import Diagnosis, diagnose
from trainyard_operator.core.draft import Draft, Event
from trainyard_operator.core.goodput import account
from trainyard_operator.core.judge import backoff, judge
from trainyard_operator.core.observe import Observation, Worker, WorkerState
from trainyard_operator.core.startup import first_step_due, judge_startup
from trainyard_operator.core.tell import (
    count_workers,
    set_running,
    set_waiting,
    tell_checkpoints,
    tell_overdue,
    tell_reached,
)

SETTLE = timedelta(seconds=3)
"""How long a failure that looks like the effect of another one waits for the cause to show."""
OVERDUE = timedelta(seconds=30)
"""How much longer than its grace period a pod may take to end before its node is taken for lost."""


@dataclass(frozen=True, slots=True)
class CreateWorkers:
    """Create these pods of the current attempt, and before them what they need (Service, ConfigMap)."""

    attempt: int
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeleteWorkers:
    """Delete these pods."""

    workers: tuple[Worker, ...]
    force: bool = False
    """At once, without waiting for the kubelet to say that they have ended."""


Action = CreateWorkers | DeleteWorkers


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write down, then what to do, then when to look again even if nothing happens."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    wake_after: float | None = None
    """Seconds; 0: at once."""


def plan(seen: Observation) -> Plan:
    """Decide the next step in the life of a job."""
    step = _decide(seen)
    return replace(step, status=account(seen.job, step.status, seen.now))


def _decide(seen: Observation) -> Plan:
    job, draft = seen.job, Draft(seen.job, seen.now)
    status = job.status
    newest = max((w.attempt for w in seen.workers), default=0)
    current = tuple(w for w in seen.workers if w.attempt == status.attempt)
    draft.update(workers=count_workers(job, current))
    if status.finished:
        return _end(draft, delete=[w for w in seen.workers if w.active])
    if newest > status.attempt:
        # The status was restored from an older state, or is a stale copy (then writing it will be refused).
        draft.update(attempt=newest, start_time=status.start_time or draft.now)
        draft.set(C.CREATED, True, Reason.ACCEPTED, f"taken up again at attempt {newest}")
        return _ledger(draft)
    if problems := spec_problems(job):
        return _fail(draft, Reason.INVALID_SPEC, "; ".join(problems))
    if job.spec.suspend:
        return _suspend(draft, seen)
    if status.is_true(C.SUSPENDED):
        return _resume(draft)
    if status.attempt == 0:
        return _accept(draft)
    if old := [w for w in seen.workers if w.attempt < status.attempt]:
        return _retire(draft, old)
    return _attend(draft, seen, current)


# --- beginning, pausing, ending -------------------------------------------------------------------------------


def _accept(draft: Draft) -> Plan:
    job = draft.job
    draft.update(attempt=1, start_time=draft.now)
    message = (
        f"world size {job.spec.world_size}: {job.spec.workers.replicas} workers x {job.spec.procs_per_worker} ranks"
    )
    if job.spec.servers:
        message += " and a parameter server"
    if job.spec.parallelism:
        message += f", laid out as {make_mesh(job.spec)}"
    draft.set(C.CREATED, True, Reason.ACCEPTED, message, event="Normal")
    draft.set(C.RUNNING, False, Reason.WAITING_FOR_PODS, "the worker pods are being created")
    return _ledger(draft)


def _suspend(draft: Draft, seen: Observation) -> Plan:
    if not draft.status.is_true(C.SUSPENDED):
        draft.set(C.SUSPENDED, True, Reason.SUSPENDED, "spec.suspend is true; the job holds no pods", event="Normal")
        draft.clear(C.RUNNING, Reason.SUSPENDED, "the job is suspended")
        draft.clear(C.PROGRESSING, Reason.SUSPENDED, "the job is suspended")
        draft.clear(C.RESTARTING, Reason.SUSPENDED, "the job is suspended")
        return _ledger(draft)
    return _end(draft, delete=seen.workers)


def _resume(draft: Draft) -> Plan:
    """A new attempt, since pods of the last one may still be going."""
    status = draft.status
    draft.update(attempt=status.attempt + 1, start_time=status.start_time or draft.now)
    draft.set(C.CREATED, True, Reason.ACCEPTED, "the job was resumed")
    draft.set(C.SUSPENDED, False, Reason.RESUMED, f"resumed as attempt {status.attempt + 1}", event="Normal")
    draft.set(C.RUNNING, False, Reason.WAITING_FOR_PODS, "the worker pods are being created")
    return _ledger(draft)


def _succeed(draft: Draft, workers: tuple[Worker, ...]) -> Plan:
    first = min(workers, key=lambda w: w.index)
    if first.message and first.message.progress:
        final = first.message.progress.replace(
            attempt=first.attempt, updated_at=first.finished_at or draft.now, eta_seconds=0.0
        )
        tell_checkpoints(draft, final)
        draft.update(progress=final)
    draft.update(completion_time=draft.now)
    for kind in (C.RUNNING, C.PROGRESSING, C.RESTARTING):
        draft.clear(kind, Reason.FINISHED, "the job has succeeded")
    reached = tell_reached(draft.status.progress)
    why = f"; {first.message.message}" if first.message and first.message.message else ""
    draft.set(C.SUCCEEDED, True, Reason.ALL_WORKERS_SUCCEEDED, f"all workers succeeded{reached}{why}", event="Normal")
    return _ledger(draft)


def _fail(draft: Draft, reason: Reason, message: str) -> Plan:
    draft.update(completion_time=draft.now)
    for kind in (C.RUNNING, C.PROGRESSING, C.RESTARTING):
        draft.clear(kind, Reason.FINISHED, "the job has failed")
    draft.set(C.FAILED, True, reason, message, event="Warning")
    return _ledger(draft)


# --- one attempt ----------------------------------------------------------------------------------------------


def _attend(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan:
    """Bring the current attempt to life, watch it, and judge its end."""
    spec = seen.job.spec
    replicas = spec.workers.replicas
    if any(w.replicas != replicas for w in workers):
        return _restart(draft, Reason.SPEC_CHANGED, f"spec.workers.replicas is {replicas} now", counts=False)
    missing = tuple(sorted(set(range(spec.pods)) - {w.index for w in workers}))
    gone = len(missing) if draft.status.is_true(C.RUNNING) else 0
    if found := diagnose(workers, draft.status.attempt, gone, draft.now):
        return _recover(draft, found)
    if not missing and all(w.state is WorkerState.SUCCEEDED for w in workers):
        return _succeed(draft, workers)
    if missing:
        return _create(draft, seen, missing)
    if all(w.state is not WorkerState.PENDING for w in workers):
        return _run(draft, seen)
    set_waiting(draft, seen, workers)
    return _end(draft)


def _run(draft: Draft, seen: Observation) -> Plan:
    """All workers run: follow their progress, and see to it that the first step comes."""
    set_running(draft, seen)
    if found := judge_startup(draft, seen.progress):
        return _recover(draft, found)
    due = first_step_due(draft)
    left = (due - draft.now).total_seconds() if due else 0.0
    return _end(draft, wake_after=left if left > 0 else None)


def _create(draft: Draft, seen: Observation, missing: tuple[int, ...]) -> Plan:
    wait = _backoff_left(draft)
    if wait > 0:
        draft.set(C.RUNNING, False, Reason.BACKING_OFF, "waiting before the next attempt (restartPolicy.backoff)")
        return _end(draft, wake_after=wait)
    workers = [w for w in seen.workers if w.attempt == draft.status.attempt]
    set_waiting(draft, seen, tuple(workers))
    return _end(draft, actions=(CreateWorkers(draft.status.attempt, missing),))


def _retire(draft: Draft, old: list[Worker]) -> Plan:
    """Wait until no pod of an earlier attempt is left: two groups must never share a job."""
    noun = "pod" if len(old) == 1 else "pods"
    message = f"waiting for {len(old)} {noun} of an earlier attempt to end"
    draft.set(C.RUNNING, False, Reason.WAITING_FOR_OLD_PODS, message)
    left = {w: (w.deletion_at + OVERDUE - draft.now).total_seconds() for w in old if w.deletion_at}
    overdue = tuple(w for w, seconds in left.items() if seconds < 0)
    for worker in overdue:
        draft.tell("Warning", Reason.POD_OVERDUE, tell_overdue(worker, OVERDUE))
    actions = (DeleteWorkers(overdue, force=True),) if overdue else ()
    # A lost node sends no event: look again when the next one is overdue.
    wake_after = min((seconds for seconds in left.values() if seconds >= 0), default=None)
    return _end(draft, delete=old, actions=actions, wake_after=None if wake_after is None else wake_after + 1)


# --- failure and restart --------------------------------------------------------------------------------------


def _recover(draft: Draft, found: Diagnosis) -> Plan:
    """A failure: start over, or give up."""
    if found.effect_since and timedelta(0) <= draft.now - found.effect_since < SETTLE:
        return _end(draft, wake_after=SETTLE.total_seconds())
    draft.update(last_failure=found.failure)
    verdict = judge(found, draft.job.spec.restart_policy, draft.status.restarts_counted)
    if verdict.fails:
        return _fail(draft, verdict.reason, verdict.message)
    return _restart(draft, verdict.reason, verdict.message, counts=verdict.counts)


def _restart(draft: Draft, reason: Reason, why: str, *, counts: bool) -> Plan:
    status = draft.status
    draft.update(
        attempt=status.attempt + 1,
        restarts=status.restarts + 1,
        restarts_counted=status.restarts_counted + counts,
    )
    message = f"{why}; restarting the group as attempt {status.attempt + 1}"
    if counts:
        message += f" (restart {status.restarts_counted + 1} of {draft.job.spec.restart_policy.limit})"
    draft.set(C.RESTARTING, True, reason, message)
    draft.tell("Warning", reason, message)
    draft.clear(C.RUNNING, reason, why)
    draft.clear(C.PROGRESSING, reason, why)
    return _ledger(draft)


def _backoff_left(draft: Draft) -> float:
    """Seconds until the current attempt may start. It follows from what the status has recorded."""
    status, failure = draft.status, draft.status.last_failure
    if failure is None or failure.attempt != status.attempt - 1:
        return 0.0
    wait = backoff(draft.job.spec.restart_policy.backoff, status.restarts_counted)
    return wait - (draft.now - failure.at).total_seconds()


# --- small parts ----------------------------------------------------------------------------------------------


def _ledger(draft: Draft) -> Plan:
    """A decision: write it down, and act upon it only once it is stored."""
    return Plan(draft.status, events=tuple(draft.events), wake_after=0)


def _end(
    draft: Draft,
    *,
    delete: "list[Worker] | tuple[Worker, ...]" = (),
    actions: tuple[Action, ...] = (),
    wake_after: float | None = None,
) -> Plan:
    doomed = tuple(w for w in delete if not w.terminating)
    if doomed:
        actions = (*actions, DeleteWorkers(doomed))
    return Plan(draft.status, actions, tuple(draft.events), wake_after)
