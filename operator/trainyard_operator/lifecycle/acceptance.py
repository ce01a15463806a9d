"""Acceptance of a spec: a job starts or resumes with a snapshot of its spec, and runs from it until it is suspended."""

from trainyard.mesh import make_mesh
from trainyard.resolve import spec_problems
from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard.text import plural
from trainyard_operator.lifecycle.actions import AcceptSpec, Plan, act_now, fail_job, record_decision
from trainyard_operator.lifecycle.conditions import set_waiting_for_pods
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.status_builder import StatusBuilder

RETRY_SECONDS = 10.0
"""Seconds until a snapshot that the API server refused, or that is missing, is tried again."""
_MAX_PATHS = 10
"""Fields that a message names."""


def report_spec(builder: StatusBuilder, observation: Observation) -> None:
    """Set the conditions that say whether the object is understood, and whether the job runs what it describes."""
    unknown = observation.desired_job.unknown_fields
    # The object has fields that this version of the operator does not know.
    if unknown:
        message = (
            f"{_listed(unknown)}: this version of the operator does not know the field and ignores it; remove it, or "
            "install the version of the operator that belongs to the CRD"
        )
        builder.set_condition(C.UNKNOWN_FIELDS, True, Reason.UNKNOWN_FIELDS, message, event="Warning")
    else:
        builder.clear_condition(C.UNKNOWN_FIELDS, Reason.ALL_FIELDS_KNOWN, "all fields of the spec are known")
    changed, problem = observation.changed_fields, observation.revision_problem
    # What was accepted is not known any more: the pods that run may continue, and none is created.
    if problem:
        builder.set_condition(C.SPEC_CHANGED, True, problem.reason, problem.message, event="Warning")
    # The spec was changed although it is immutable while the job is active.
    elif changed:
        message = (
            f"{_listed(changed)}: differs from what was accepted ({builder.accepted_revision}), and has no effect on "
            "the running job; to apply it set suspend: true, wait for the condition Suspended and set suspend: false, "
            "else undo the change"
        )
        builder.set_condition(C.SPEC_CHANGED, True, Reason.SPEC_CHANGED, message, event="Warning")
    else:
        builder.clear_condition(C.SPEC_CHANGED, Reason.AS_ACCEPTED, "the job runs what its spec describes")


def check_spec(builder: StatusBuilder, observation: Observation) -> Plan | None:
    """Return the plan that fails a job whose spec cannot work, whether or not it is suspended; None if it can.

    A spec is validated once per generation, and again before pods are created from it.
    """
    job = observation.desired_job
    changed = job.metadata.generation != job.status.observed_generation
    # The spec was found valid a moment ago, before it was accepted.
    if observation.acceptance is not None or not (starts(observation) or changed):
        return None
    if problems := spec_problems(job):
        return fail_job(builder, Reason.INVALID_SPEC, "; ".join(problems))
    return None


def starts(observation: Observation) -> bool:
    """Return whether the job is about to start or to resume."""
    job, status = observation.desired_job, observation.desired_job.status
    return not job.spec.suspend and (status.attempt == 0 or status.is_true(C.SUSPENDED) or status.suspending)


def accept(builder: StatusBuilder, observation: Observation) -> Plan:
    """Return the plan that starts or resumes a job, once its spec is accepted."""
    acceptance = observation.acceptance
    # Its pods are still ending: until none is left, the job runs what was accepted before.
    if builder.suspending and builder.accepted_revision is not None:
        return _resume(builder)
    # Nothing is known about the spec yet.
    if acceptance is None:
        return act_now(builder, actions=(AcceptSpec(dry_run=True),))
    # The API server, or the merge of the templates, refuses it.
    if acceptance.problem:
        return fail_job(builder, Reason.INVALID_SPEC, acceptance.problem)
    # The snapshot could not be stored.
    if acceptance.refusal:
        return _await_revision(builder, acceptance.refusal.message)
    builder.accepted_revision = acceptance.revision
    was_suspended = builder.is_true(C.SUSPENDED) or builder.suspending
    return _resume(builder) if was_suspended else _start_first_attempt(builder)


def record_revision(builder: StatusBuilder, observation: Observation) -> Plan:
    """Return the plan that records a snapshot of a job that an earlier version of the operator has started."""
    acceptance = observation.acceptance
    if acceptance is None:
        return act_now(builder, actions=(AcceptSpec(dry_run=False),))
    if acceptance.refusal:
        return _await_revision(builder, acceptance.refusal.message)
    builder.accepted_revision = acceptance.revision
    return record_decision(builder)


def await_known_revision(builder: StatusBuilder, observation: Observation) -> Plan:
    """Return the plan of a group that needs pods, while it is not known what they should be."""
    assert observation.revision_problem is not None
    problem = observation.revision_problem
    builder.set_condition(C.RUNNING, False, problem.reason, problem.message, event="Warning")
    return act_now(builder, wake_after=RETRY_SECONDS)


def _await_revision(builder: StatusBuilder, message: str) -> Plan:
    builder.set_condition(C.RUNNING, False, Reason.REVISION_REFUSED, message, event="Warning")
    return act_now(builder, wake_after=RETRY_SECONDS)


def _start_first_attempt(builder: StatusBuilder) -> Plan:
    """Return the plan that accepts a new job."""
    spec = builder.effective_job.spec
    builder.attempt = 1
    builder.start_time = builder.now
    counts = f"{plural(spec.workers.replicas, 'worker')} x {plural(spec.procs_per_worker, 'rank')}"
    message = f"world size {spec.world_size}: {counts}"
    if spec.servers:
        message += " and a parameter server"
    if spec.trainer and spec.parallelism:
        message += f", mesh {make_mesh(spec)}"
    builder.set_condition(C.CREATED, True, Reason.ACCEPTED, message, event="Normal")
    set_waiting_for_pods(builder, running=0)
    return record_decision(builder)


def _resume(builder: StatusBuilder) -> Plan:
    """Return the plan that starts a new attempt, since pods of the last one may still be terminating."""
    builder.attempt += 1
    builder.pod_attempt_override = None
    builder.start_time = builder.start_time or builder.now
    builder.elastic = builder.scheduling = None
    builder.set_condition(C.CREATED, True, Reason.ACCEPTED, "the job was resumed")
    message = f"resumed as attempt {builder.attempt}"
    builder.set_condition(C.SUSPENDED, False, Reason.RESUMED, message, event="Normal")
    set_waiting_for_pods(builder, running=0)
    return record_decision(builder)


def _listed(paths: tuple[str, ...]) -> str:
    """Return paths as the beginning of a message, some of them if there are many."""
    more = f" and {len(paths) - _MAX_PATHS} more" if len(paths) > _MAX_PATHS else ""
    return ", ".join(path[:200] for path in paths[:_MAX_PATHS]) + more
