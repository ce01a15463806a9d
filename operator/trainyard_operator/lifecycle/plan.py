"""The life of a job, in one pure function.

`plan` looks at a job and its pods and says what the status is and what to do next. It does no I/O and reads no
clock. It is level-triggered: it may run at any moment, any number of times, on whatever is there.

The ledger rule. What must be remembered (attempt, restarts, first failure, suspension, start and end) is a change
of the status alone: such a plan carries no action, and the next plan, made from the status as it was stored, acts
upon it. So an operator that dies at any moment never repeats or forgets a decision. Numbers of attempts fence: no
pod of an attempt is created while a pod of another one exists, and a launcher that is told to start an attempt inside
its pod ends what runs of an earlier one.
"""

from dataclasses import replace
from datetime import timedelta

from trainyard.mesh import make_mesh
from trainyard.resolve import spec_problems
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import (
    CreateWorkers,
    DeleteWorkers,
    OrderWorkers,
    Plan,
    fail,
    ledger,
    rest,
    settle,
)
from trainyard_operator.lifecycle.conditions import count_workers, set_running, set_waiting, tell_overdue, tell_reached
from trainyard_operator.lifecycle.degradation import tell_mishaps
from trainyard_operator.lifecycle.diagnosis import diagnose
from trainyard_operator.lifecycle.elastic import grow, rescale, shrink, shrink_due, tell_size
from trainyard_operator.lifecycle.goodput import account
from trainyard_operator.lifecycle.node_avoidance import NEEDED_AFTER, replace_straggler, use_slow_nodes
from trainyard_operator.lifecycle.observation import Observation, Worker, WorkerState
from trainyard_operator.lifecycle.restart import back_off, order, recover, renew
from trainyard_operator.lifecycle.startup_timeout import first_step_due, judge_startup
from trainyard_operator.lifecycle.status_builder import Draft

OVERDUE = timedelta(seconds=30)
"""How much longer than its grace period a pod may take to end before its node is taken for lost."""


def plan(seen: Observation) -> Plan:
    """Decide the next step in the life of a job."""
    step = _decide(seen)
    return replace(step, status=account(seen.job, step.status, seen.now))


def _decide(seen: Observation) -> Plan:
    job, draft = seen.job, Draft(seen.job, seen.now)
    status = job.status
    newest = max((w.runs for w in seen.workers), default=0)
    current = tuple(w for w in seen.workers if w.attempt == status.pod_attempt and not w.placeholder)
    draft.update(workers=count_workers(draft.job, current))
    if status.finished:
        return _clear(draft, seen.workers)
    if newest > status.attempt:
        # The status was restored from an older state, or is a stale copy (then writing it will be refused).
        group = max(w.attempt for w in seen.workers)
        pod_attempt_override = group if group < newest else None
        draft.update(
            attempt=newest, pod_attempt_override=pod_attempt_override, start_time=status.start_time or draft.now
        )
        draft.set(C.CREATED, True, Reason.ACCEPTED, f"taken up again at attempt {newest}")
        return ledger(draft)
    if problems := spec_problems(job):
        return fail(draft, Reason.INVALID_SPEC, "; ".join(problems))
    if job.spec.suspend:
        return _suspend(draft, seen)
    if status.is_true(C.SUSPENDED):
        return _resume(draft)
    if status.attempt == 0:
        return _accept(draft)
    if old := [w for w in seen.workers if w.attempt < status.pod_attempt]:
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
    return ledger(draft)


def _suspend(draft: Draft, seen: Observation) -> Plan:
    if not draft.status.is_true(C.SUSPENDED):
        draft.set(C.SUSPENDED, True, Reason.SUSPENDED, "spec.suspend is true; the job holds no pods", event="Normal")
        rest(draft, Reason.SUSPENDED, "the job is suspended")
        return ledger(draft)
    return settle(draft, delete=seen.workers)


def _resume(draft: Draft) -> Plan:
    """A new attempt, since pods of the last one may still be going."""
    status = draft.status
    begun = status.start_time or draft.now
    draft.update(attempt=status.attempt + 1, pod_attempt_override=None, start_time=begun, elastic=None)
    draft.set(C.CREATED, True, Reason.ACCEPTED, "the job was resumed")
    draft.set(C.SUSPENDED, False, Reason.RESUMED, f"resumed as attempt {status.attempt + 1}", event="Normal")
    draft.set(C.RUNNING, False, Reason.WAITING_FOR_PODS, "the worker pods are being created")
    return ledger(draft)


def _succeed(draft: Draft, workers: tuple[Worker, ...]) -> Plan:
    first = min(workers, key=lambda w: w.index)
    if first.message and first.message.progress:
        final = first.message.progress.replace(
            attempt=draft.status.attempt, updated_at=first.finished_at or draft.now, eta_seconds=0.0
        )
        tell_mishaps(draft, final)
        draft.update(progress=final)
    draft.update(completion_time=draft.now)
    rest(draft, Reason.FINISHED, "the job has succeeded")
    reached = tell_reached(draft.status.progress)
    why = f"; {first.message.message}" if first.message and first.message.message else ""
    draft.set(C.SUCCEEDED, True, Reason.ALL_WORKERS_SUCCEEDED, f"all workers succeeded{reached}{why}", event="Normal")
    return ledger(draft)


def _clear(draft: Draft, workers: tuple[Worker, ...]) -> Plan:
    """The job has ended: no pod may hold resources any longer. One that has failed and lives ends as it has failed."""
    held = tuple(w for w in workers if w.held and w.obeys)
    actions = (OrderWorkers(held, None),) if held else ()
    return settle(draft, delete=[w for w in workers if w.active and w not in held], actions=actions)


# --- one attempt ----------------------------------------------------------------------------------------------


def _attend(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan:
    """Bring the current attempt to life, watch it, and judge its end."""
    spec = draft.job.spec
    if any(w.replicas != spec.workers.replicas for w in workers):
        return rescale(draft, seen, workers)
    tell_size(draft, seen.job.spec.workers.replicas)
    missing = tuple(sorted(set(range(spec.pods)) - {w.index for w in workers}))
    if draft.status.pod_attempt_override is not None and not draft.status.is_true(C.RUNNING):
        if missing or not all(w.obeys or w.runs == draft.status.attempt for w in workers):
            return renew(draft)
        if behind := tuple(w for w in workers if w.runs < draft.status.attempt):
            return order(draft, behind)
    gone = len(missing) if draft.status.is_true(C.RUNNING) else 0
    if found := diagnose(workers, draft.status.attempt, gone, draft.now):
        return recover(draft, found, workers)
    if not missing and all(w.state is WorkerState.SUCCEEDED for w in workers):
        return _succeed(draft, workers)
    if not missing and all(w.state is not WorkerState.PENDING for w in workers):
        return _run(draft, seen, workers)
    if not missing and (another := use_slow_nodes(draft, workers)):
        return another
    if smaller := shrink(draft, seen, workers, missing):
        return smaller
    if missing:
        return _create(draft, seen, workers, missing)
    set_waiting(draft, seen, workers)
    # Pods that cannot be scheduled say so once.
    waits = [shrink_due(draft), NEEDED_AFTER.total_seconds() if draft.status.avoided_nodes else None]
    return settle(draft, wake_after=min((s for s in waits if s is not None), default=None))


def _run(draft: Draft, seen: Observation, workers: tuple[Worker, ...]) -> Plan:
    """All workers run: follow their progress, see to it that the first step comes, and seek room for more workers."""
    set_running(draft, seen, workers)
    tell_size(draft, seen.job.spec.workers.replicas)
    if another := replace_straggler(draft, seen, workers):
        return another
    if found := judge_startup(draft, seen.progress):
        return recover(draft, found, ())
    due = first_step_due(draft)
    left = (due - draft.now).total_seconds() if due else 0.0
    step = settle(draft, wake_after=left if left > 0 else None)
    if all(w.state is WorkerState.RUNNING for w in workers) and (larger := grow(draft, seen)):
        waits = [s for s in (step.wake_after, larger.wake_after) if s is not None]
        return replace(larger, wake_after=min(waits, default=None))
    return step


def _create(draft: Draft, seen: Observation, workers: tuple[Worker, ...], missing: tuple[int, ...]) -> Plan:
    if pause := back_off(draft):
        return pause
    set_waiting(draft, seen, workers)
    return settle(draft, actions=(CreateWorkers(draft.status.attempt, missing),), wake_after=shrink_due(draft))


def _retire(draft: Draft, old: list[Worker]) -> Plan:
    """Wait until no pod of an earlier attempt is left: two groups must never share a job."""
    # Placeholders keep the room that they have found until the workers have saved and gone.
    old = [w for w in old if not (w.placeholder and w.state is WorkerState.RUNNING)] or old
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
    return settle(draft, delete=old, actions=actions, wake_after=None if wake_after is None else wake_after + 1)
