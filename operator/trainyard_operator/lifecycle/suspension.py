"""Suspension: the pods end first, and the job is suspended when none is left.

Others may rely on the condition Suspended: a queue gives the quota of the job away, and the spec may be changed.
"""

from trainyard.resource.status import ConditionType as C
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.actions import Plan, act_now, clear_active_conditions, record_decision
from trainyard_operator.lifecycle.diagnosis import unsaved_state
from trainyard_operator.lifecycle.observation import Observation
from trainyard_operator.lifecycle.status_builder import StatusBuilder


def suspend(builder: StatusBuilder, observation: Observation) -> Plan:
    """Return the plan that records the suspension, deletes all pods, or records that none is left."""
    # The job is suspended: a pod that exists all the same was created by an operator that did not know it yet.
    if builder.is_true(C.SUSPENDED):
        return act_now(builder, delete=observation.workers)
    # No pod is left.
    if not observation.workers:
        builder.set_condition(C.SUSPENDED, True, Reason.SUSPENDED, "no pod of the job is left", event="Normal")
        clear_active_conditions(builder, Reason.SUSPENDED, "the job is suspended")
        return record_decision(builder)
    # Pods exist: record that they are to end, so that their end is not taken for a failure.
    if not builder.suspending:
        message = "spec.suspend is true; the job's pods are deleted"
        builder.set_condition(C.SUSPENDED, False, Reason.SUSPENDING, message, event="Normal")
        clear_active_conditions(builder, Reason.SUSPENDING, "the job is being suspended")
        return record_decision(builder)
    # They are ending. One could not save its state, so the job will resume from an older checkpoint: say so once.
    failure, known = unsaved_state(observation.workers, builder.now), builder.last_failure
    if failure is not None and (known is None or (known.reason, known.attempt) != (failure.reason, failure.attempt)):
        builder.last_failure = failure
        message = f"pod {failure.pod} ended without saving its state: {failure.message}"
        builder.record_event("Warning", Reason.FINAL_CHECKPOINT_FAILED, message)
    return act_now(builder, delete=observation.workers)
