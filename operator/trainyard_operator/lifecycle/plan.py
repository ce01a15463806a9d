"""The lifecycle of a job, in one pure function.

`plan` takes an observation of a job and its pods, and returns the status to write and the actions to take. It does no
I/O and reads no clock. It is level-triggered: it may run at any moment and any number of times.

Decisions are recorded before they are acted on. What must be remembered (attempt, restarts, first failure, suspension,
start and end) changes the status alone: such a plan has no action, and the next plan, made from the stored status, acts
on it. So an operator that is killed at any moment neither repeats nor forgets a decision. Attempt numbers are fencing
tokens: no pod of an attempt is created while a pod of another attempt exists, and a launcher that gets a restart
request stops the processes of every earlier attempt first.
"""

from dataclasses import replace
from datetime import timedelta

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.acceptance import (
    RETRY_SECONDS,
    accept,
    await_known_revision,
    check_spec,
    record_revision,
    report_spec,
    starts,
)
from trainyard_operator.lifecycle.actions import CreateWorkers, DeleteWorkers, Plan, act_now, record_decision
from trainyard_operator.lifecycle.conditions import (
    count_workers,
    overdue_message,
    seconds_until_slow_start,
    set_running,
    set_waiting,
)
from trainyard_operator.lifecycle.deadline import account_running_time, check_deadline, seconds_until_deadline
from trainyard_operator.lifecycle.diagnosis import diagnose
from trainyard_operator.lifecycle.elastic import grow, handle_size_change, report_size, seconds_until_shrink, shrink
from trainyard_operator.lifecycle.finish import await_success, clean_up, has_succeeded, succeed
from trainyard_operator.lifecycle.goodput import account_time
from trainyard_operator.lifecycle.node_avoidance import READMIT_AFTER, readmit_nodes, replace_straggler
from trainyard_operator.lifecycle.observation import Observation, WorkerPod, WorkerState
from trainyard_operator.lifecycle.progress_writes import hold_back_progress, with_newest_progress
from trainyard_operator.lifecycle.restart import handle_failure, replace_pods, restart_in_place, wait_for_backoff
from trainyard_operator.lifecycle.scheduling_timeout import (
    forget_other_attempts,
    give_up_attempt,
    is_giving_up,
    seconds_until_timeout,
    wait_for_retry,
)
from trainyard_operator.lifecycle.startup_timeout import check_startup_timeout, first_step_deadline
from trainyard_operator.lifecycle.status_builder import StatusBuilder
from trainyard_operator.lifecycle.successes import remember_successes
from trainyard_operator.lifecycle.summary import summarize
from trainyard_operator.lifecycle.suspension import suspend

FORCE_DELETE_AFTER = timedelta(seconds=30)
"""How long after its grace period a terminating pod is deleted by force, since its node is considered lost."""


def plan(observation: Observation) -> Plan:
    """Return the next step in the lifecycle of a job."""
    step, before = _decide(observation), observation.desired_job.status
    after = step.status
    # Successes belong to the pods of one attempt.
    if (after.attempt, after.pod_attempt) != (before.attempt, before.pod_attempt):
        after = after.replace(succeeded_indexes="")
    after = forget_other_attempts(before, after)
    after = account_running_time(before, after, observation.now)
    after = summarize(after, observation.now)
    after = with_newest_progress(before, after, observation.progress)
    after = account_time(observation.desired_job, after, observation.now)
    # An event is recorded once, so the status that shows it is written with it.
    if not step.events:
        after = hold_back_progress(before, after, observation.progress_interval)
    return replace(step, status=after)


def _decide(observation: Observation) -> Plan:
    job = observation.desired_job
    status, builder = job.status, StatusBuilder.from_job(job, observation.now)
    current = tuple(w for w in observation.workers if w.attempt == builder.pod_attempt and not w.is_placeholder)
    succeeded = remember_successes(builder, () if status.finished else current)
    builder.workers = count_workers(builder.effective_job, current, succeeded)
    builder.clear_condition(C.UNREADABLE, Reason.READABLE, "the operator understands the object")
    # A finished job never changes again; it only releases its resources.
    if status.finished:
        return clean_up(builder, observation.workers)
    # Pods of a later attempt exist: the status is stale, or was restored from a backup.
    newest = max((w.running_attempt for w in observation.workers), default=0)
    if newest > status.attempt:
        return _adopt_newest_attempt(builder, observation, newest)
    builder.clear_condition(C.STATUS_REFUSED, Reason.STATUS_STORED, "the complete status is stored")
    report_spec(builder, observation)
    # A spec that cannot work fails the job.
    if failed := check_spec(builder, observation):
        return failed
    # The user wants the job to be suspended.
    if job.spec.suspend:
        return suspend(builder, observation)
    # The job is new, or was suspended, or its pods are ending, and it is to run again.
    if starts(observation):
        return accept(builder, observation)
    # An earlier version of the operator has started the job.
    if status.accepted_revision is None:
        return record_revision(builder, observation)
    # It has run for as long as it may, and has not succeeded.
    if not has_succeeded(builder.effective_job.spec, succeeded) and (failed := check_deadline(builder)):
        return failed
    # Two groups must never share a job: pods of earlier attempts must be gone before this attempt gets its own.
    if earlier := [w for w in observation.workers if w.attempt < status.pod_attempt]:
        return _await_previous_attempt(builder, earlier)
    # All pods belong to the current attempt.
    return _sync_attempt(builder, observation, current, succeeded)


def _adopt_newest_attempt(builder: StatusBuilder, observation: Observation, newest: int) -> Plan:
    """Return the plan that raises the attempt in the status to the newest one that a pod takes part in.

    If the status is only a stale copy, its resource version is outdated and the write is refused.
    """
    pod_attempt = max(w.attempt for w in observation.workers)
    builder.attempt = newest
    builder.pod_attempt_override = pod_attempt if pod_attempt < newest else None
    builder.start_time = builder.start_time or builder.now
    # The pods say which spec they were built from.
    builder.accepted_revision = max(observation.workers, key=lambda w: w.running_attempt).revision
    # The spec has not been validated for this status yet: keep the generation that has been.
    builder.observed_generation = observation.desired_job.status.observed_generation
    builder.set_condition(C.CREATED, True, Reason.ACCEPTED, f"adopted the pods of attempt {newest}")
    return record_decision(builder)


def _await_previous_attempt(builder: StatusBuilder, earlier: list[WorkerPod]) -> Plan:
    """Return the plan that deletes the pods of earlier attempts and waits until none exists."""
    # Running placeholders keep the capacity they found until the workers have saved a checkpoint and ended.
    earlier = [w for w in earlier if not (w.is_placeholder and w.state is WorkerState.RUNNING)] or earlier
    # A condition says already why an attempt that was not scheduled in time ends.
    if not is_giving_up(builder):
        noun = "pod" if len(earlier) == 1 else "pods"
        message = f"waiting for {len(earlier)} {noun} of an earlier attempt to terminate"
        builder.set_condition(C.RUNNING, False, Reason.WAITING_FOR_OLD_PODS, message)
    # A pod that has not terminated long after its grace period is on a lost node: delete it by force.
    seconds_left = {
        w: (w.deletion_deadline + FORCE_DELETE_AFTER - builder.now).total_seconds()
        for w in earlier
        if w.deletion_deadline
    }
    overdue = tuple(w for w, seconds in seconds_left.items() if seconds < 0)
    for worker in overdue:
        builder.record_event("Warning", Reason.POD_OVERDUE, overdue_message(worker, FORCE_DELETE_AFTER))
    actions = (DeleteWorkers(overdue, force=True),) if overdue else ()
    # A lost node sends no event: reconcile again as soon as the next pod is overdue.
    wake_after = min((seconds + 1 for seconds in seconds_left.values() if seconds >= 0), default=None)
    return act_now(builder, delete=earlier, actions=actions, wake_after=wake_after)


def _sync_attempt(
    builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...], succeeded: set[int]
) -> Plan:
    """Return the plan that creates, monitors or concludes the current attempt.

    Args:
        builder: the status.
        observation: the observation.
        workers: the pods of the attempt that exist.
        succeeded: indexes of its pods that have succeeded, whether or not they still exist.
    """
    spec = builder.effective_job.spec
    # Rank 0 has succeeded: its final progress stays, whatever its page showed last.
    if 0 in succeeded:
        observation = replace(observation, progress=None)
    known = observation.revision_problem is None
    # The pods were created for another number of workers than is desired now.
    if any(w.replicas != spec.workers.replicas for w in workers):
        # A new group could get no pods, so the old one continues.
        if not known:
            return act_now(builder, wake_after=RETRY_SECONDS)
        return handle_size_change(builder, observation, workers)
    report_size(builder, observation.desired_job.spec.workers.replicas)
    missing = tuple(sorted(set(range(spec.pods)) - {w.index for w in workers} - succeeded))
    # The attempt is being started inside the pods of an earlier one.
    if builder.pod_attempt_override is not None and not builder.is_true(C.RUNNING):
        # A pod is gone or rejects the restart: the attempt gets new pods.
        if missing or not all(w.accepts_restart or w.running_attempt == builder.attempt for w in workers):
            return replace_pods(builder)
        # Pods have not started it yet.
        if behind := tuple(w for w in workers if w.running_attempt < builder.attempt):
            return restart_in_place(builder, behind)
    # The pods whose success is needed have succeeded: the job is done, whatever becomes of the others.
    if has_succeeded(spec, succeeded):
        return succeed(builder, workers)
    # A worker failed, or disappeared from a group that was running: apply the restart policy.
    running = builder.is_true(C.RUNNING)
    unstarted = 0 if running else len(missing) + sum(w.state is WorkerState.PENDING for w in workers)
    lost = len(missing) if running else 0
    if diagnosis := diagnose(workers, builder.attempt, lost, builder.now, unstarted):
        diagnosis = await_success(builder, workers, diagnosis)
        return handle_failure(builder, diagnosis, workers, observation.progress)
    # Every worker runs, or has succeeded already.
    if not missing and all(w.state is not WorkerState.PENDING for w in workers):
        return _monitor(builder, observation, workers)
    # Pods are missing, and what they should be is not known.
    if missing and not known:
        return await_known_revision(builder, observation)
    # The group cannot be scheduled without the nodes that it avoids: use them again, refusing nodes first.
    if not missing and (restart := readmit_nodes(builder, workers)):
        return restart
    # Pods of an elastic group were unschedulable for too long: restart with fewer workers.
    if smaller := shrink(builder, observation, workers, missing):
        return smaller
    # The group could not be scheduled as a whole in time: its nodes go to others for a while.
    if retry := give_up_attempt(builder, workers, missing):
        return retry
    # Pods do not exist yet.
    if missing:
        return _create_missing_pods(builder, observation, workers, missing)
    # All pods exist and some do not run yet. An unschedulable pod sends only one event, so set timers for what may
    # follow.
    set_waiting(builder, observation, workers)
    timers = [seconds_until_shrink(builder), READMIT_AFTER.total_seconds() if builder.avoided_nodes else None]
    timers += [seconds_until_slow_start(workers, builder.now), seconds_until_timeout(builder)]
    return act_now(builder, wake_after=min((s for s in timers if s is not None), default=None))


def _monitor(builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...]) -> Plan:
    """Return the plan for a group that runs: report progress, enforce the startup timeout, and probe for capacity."""
    builder.scheduling = None
    set_running(builder, observation, workers)
    report_size(builder, observation.desired_job.spec.workers.replicas)
    # A rank is slow, and the user wants its node to be avoided.
    if replacement := replace_straggler(builder, observation, workers):
        return replacement
    # The first step is overdue. No launcher awaits a restart, so the group gets new pods.
    if diagnosis := check_startup_timeout(builder, observation.progress):
        return handle_failure(builder, diagnosis, (), observation.progress)
    # Reconcile again at the deadline of the first step, and at the end of the time that the job may run.
    deadline = first_step_deadline(builder, observation.progress)
    seconds = (deadline - builder.now).total_seconds() if deadline else 0.0
    left = seconds_until_deadline(builder)
    wake_after = min((s for s in (seconds, left) if s is not None and s > 0), default=None)
    # The group has fewer workers than desired, and none of them is about to end: probe for capacity.
    complete = len(workers) == builder.effective_job.spec.pods and all(w.state is WorkerState.RUNNING for w in workers)
    if complete and observation.revision_problem is None and (growth := grow(builder, observation)):
        timers = [s for s in (wake_after, growth.wake_after) if s is not None]
        return replace(growth, wake_after=min(timers, default=None))
    return act_now(builder, wake_after=wake_after)


def _create_missing_pods(
    builder: StatusBuilder, observation: Observation, workers: tuple[WorkerPod, ...], missing: tuple[int, ...]
) -> Plan:
    """Return the plan that creates the pods with the indexes `missing`, after the waits that the job is due."""
    if wait := wait_for_backoff(builder) or wait_for_retry(builder):
        return wait
    set_waiting(builder, observation, workers)
    actions = (CreateWorkers(builder.attempt, missing),)
    timers = (seconds_until_shrink(builder), seconds_until_timeout(builder))
    return act_now(builder, actions=actions, wake_after=min((s for s in timers if s is not None), default=None))
