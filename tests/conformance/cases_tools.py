"""What kubectl, Flux, Helm and autoscalers see: kstatus, conditions, and the scale subresource."""

from tests.conformance import then, when
from tests.conformance.model import Job, Step, case
from tests.conformance.trial import Trial

APPLY = "application/apply-patch+yaml"


def _condition(kind: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "Other", "lastTransitionTime": "2030-01-01T00:00:00Z"}


async def _apply_status(trial: Trial, writer: str, *kinds: str) -> None:
    kind = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob"}
    body = {**kind, "status": {"conditions": [_condition(kind) for kind in kinds]}}
    await trial.api.request("PATCH", trial.jobs("job", "status"), body, content_type=APPLY, fieldManager=writer)


def applies_condition(*kinds: str) -> Step:
    """Another controller applies conditions of its own, server-side."""
    return lambda trial: _apply_status(trial, f"writer-of-{kinds[0]}", *kinds)


def refuses_two_conditions_of_a_type() -> Step:
    """The API server refuses a list with two conditions of one type."""

    async def step(trial: Trial) -> None:
        body = {"status": {"conditions": [_condition("A"), _condition("A")]}}
        await then.refused(trial.api.patch(trial.jobs("job", "status"), body), ("Duplicate value",))

    return step


def kstatus(expected: str) -> Step:
    """The job looks like this to Flux and Helm (kubernetes-sigs/cli-utils, pkg/kstatus/status)."""

    def check(trial: Trial) -> None:
        job = trial.job
        generation = job["metadata"]["generation"]
        current = job.get("status", {}).get("observedGeneration", generation) == generation
        if not current or then.condition(job, "Reconciling") == "True":
            found = "InProgress"
        elif then.condition(job, "Stalled") == "True":
            found = "Failed"
        else:
            found = "InProgress" if then.condition(job, "Ready") == "False" else "Current"
        assert found == expected, f"kstatus is {found}, not {expected}"

    return then.expect(check)


CASES = (
    # --- kstatus ---------------------------------------------------------------------------------------------
    case(
        "given a job that no controller has seen, then kstatus is InProgress",
        Job(manager="example.com/other"),
        kstatus("InProgress"),
        then.status({"observedGeneration": 0}),
    ),
    case(
        "given pods without a node, then kstatus is InProgress and Reconciling is True",
        Job(),
        then.reaches("Pending"),
        kstatus("InProgress"),
        then.says("Reconciling", "True", "WaitingForPods"),
        then.says("Ready", "False", "WaitingForPods"),
        starts=False,
    ),
    case(
        "given a running job, then kstatus is Current and Ready is True",
        Job(),
        then.runs(),
        kstatus("Current"),
        then.says("Ready", "True", "AllWorkersRunning"),
        then.says("Reconciling", "False", "AllWorkersRunning"),
        then.without_condition("Finished"),
        then.without_condition("Stalled"),
        node=True,
    ),
    case(
        "given a group that restarts, then kstatus is InProgress",
        Job(restarts=1),
        then.runs(),
        when.ends(1, code=1),
        then.reaches("Restarting"),
        kstatus("InProgress"),
        when.go((1, 0)),
        then.runs(2),
        kstatus("Current"),
        terminates=False,
        starts=True,
    ),
    case(
        "given a job whose pods end for a suspension, then kstatus is InProgress, and Current once it is suspended",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspending"),
        kstatus("InProgress"),
        when.go((1, 0), (1, 1)),
        then.reaches("Suspended"),
        kstatus("Current"),
        terminates=False,
    ),
    case(
        "given a job that has succeeded, then Finished is True and kstatus is Current",
        Job(),
        then.runs(),
        when.ends(0, 1),
        then.says("Finished", "True", "AllWorkersSucceeded"),
        then.says("Succeeded", "True", "AllWorkersSucceeded"),
        kstatus("Current"),
        then.without_condition("Stalled"),
        node=True,
    ),
    case(
        "given a job that has failed, then Finished and Stalled are True, name the pod, and kstatus is Failed",
        Job(),
        then.runs(),
        when.ends(1, code=1, message="no data"),
        then.says("Finished", "True", "WorkerFailed", "pod job-1-1 failed"),
        then.says("Stalled", "True", "WorkerFailed", "pod job-1-1 failed"),
        kstatus("Failed"),
        node=True,
    ),
    case(
        "given a job, when its spec is changed, then observedGeneration follows",
        Job(),
        then.runs(),
        when.edit(cleanPodPolicy="All"),
        then.expect(
            lambda trial: then.matches(trial.job, {"status.observedGeneration": trial.job["metadata"]["generation"]})
        ),
        then.status({"observedGeneration": 2}),
        node=True,
    ),
    # --- conditions ------------------------------------------------------------------------------------------
    case(
        "given two other controllers, when both apply a condition, then the list has both",
        Job(manager="example.com/other"),
        applies_condition("A"),
        applies_condition("B"),
        then.expect(lambda trial: then.matches(trial.job, {"status.conditions.1.type": "B"})),
        then.expect(lambda trial: then.matches(trial.job, {"status.conditions.0.type": "A"})),
    ),
    case(
        "given a list with two conditions of a type, then the API server refuses it",
        Job(manager="example.com/other"),
        refuses_two_conditions_of_a_type(),
    ),
    # --- scale -----------------------------------------------------------------------------------------------
    case(
        "given a running job, then the scale subresource has its size and a selector that finds its workers",
        Job(),
        then.runs(),
        when.create(Job(name="job2", workers=1)),
        then.finds("pods", "job2-1-0", {}),
        then.scale_is({"spec.replicas": 2, "status.replicas": 2}, "job-1-0", "job-1-1"),
        node=True,
    ),
    case(
        "given a job without restarts, when it is scaled up, then it restarts at the new size and none is counted",
        Job(),
        then.runs(),
        when.scale(3),
        then.runs(2, workers=3),
        then.status({"restartsCounted": 0, "workers.desired": 3}),
        then.scale_is({"spec.replicas": 3, "status.replicas": 3}, "job-2-0", "job-2-1", "job-2-2"),
        node=True,
    ),
    case(
        "given 3 workers, when it is scaled down to 1, then one worker runs as attempt 2",
        Job(workers=3),
        then.runs(workers=3),
        when.scale(1),
        then.runs(2, workers=1),
        then.environment(0, {"WORLD_SIZE": "1", "PET_NNODES": "1"}),
        then.status({"restartsCounted": 0}),
    ),
    case(
        "given a suspended job, when it is scaled, then it has no pods, and the new size once it is resumed",
        Job(suspended=True),
        then.reaches("Suspended"),
        when.scale(3),
        then.stays(then.pods_are(), 0.5),
        when.suspend(False),
        then.runs(1, workers=3),
    ),
)
