"""What any operator of groups of pods may be expected to do: cases without a field that only a TrainingJob has."""

from collections.abc import Callable

from tests.conformance import then, when
from tests.conformance.model import Job, case
from tests.conformance.trial import Trial


def is_not(state: str) -> Callable[[Trial], None]:
    """Return a check that the job is in another state."""

    def check(trial: Trial) -> None:
        assert trial.mapping.state(trial.job) != state, f"the job is {state}"

    return check


def has_restarted(times: int) -> Callable[[Trial], None]:
    """Return a check of how many restarts have been counted."""

    def check(trial: Trial) -> None:
        found = trial.mapping.restarts(trial.job)
        assert found == times, f"{found} restarts, not {times}"

    return check


def runs_again(trial: Trial) -> None:
    """Check that all workers of one attempt run, whatever its number is."""
    attempts = {attempt for attempt, _ in trial.pods}
    assert len(attempts) == 1, f"attempts {attempts}"
    assert {index for _, index in trial.pods} == {0, 1}
    assert trial.mapping.state(trial.job) == "Running", trial.mapping.state(trial.job)


def nothing_runs(trial: Trial) -> None:
    """Check that each pod has ended, or is being deleted."""
    running = [
        identity
        for identity, pod in trial.pods.items()
        if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    assert running == [], f"{running} run"


CASES = (
    case(
        "given a limit of 1 restart, when both attempts fail, then the job has failed after one restart",
        Job(restarts=1),
        then.runs(),
        when.ends(0, code=1),
        then.runs(2),
        then.expect(has_restarted(1)),
        when.ends(1, code=1),
        then.reaches("Failed"),
        then.expect(has_restarted(1)),
        needs="gang restart",
    ),
    case(
        "given pods that take long to end, when one fails, then no pod of attempt 2 exists beside one of attempt 1",
        Job(workers=3, restarts=1),
        then.runs(workers=3),
        when.ends(1, code=1),
        then.expect(nothing_runs),
        then.stays(lambda trial: then.matches({"new": [a for a, _ in trial.pods if a > 1]}, {"new": []})),
        when.go((1, 0)),
        then.stays(lambda trial: then.matches({"new": [a for a, _ in trial.pods if a > 1]}, {"new": []}), 0.5),
        when.go((1, 2)),
        then.runs(2, workers=3),
        needs="gang restart",
        terminates=False,
    ),
    case(
        "given pods that take long to end, when the job is suspended, then it is not Suspended before the last is gone",
        Job(),
        then.runs(),
        when.suspend(),
        then.expect(nothing_runs),
        then.stays(is_not("Suspended")),
        when.go((1, 0), (1, 1)),
        then.reaches("Suspended"),
        needs="suspend",
        terminates=False,
    ),
    case(
        "given a suspended job, when it is resumed, then all of its workers run again and no restart is counted",
        Job(),
        then.runs(),
        when.suspend(),
        then.reaches("Suspended"),
        then.has_pods(),
        when.suspend(False),
        then.expect(runs_again),
        then.expect(has_restarted(0)),
        needs="suspend",
    ),
    case(
        "given a job that is created suspended, when it is resumed, then its workers run as its first attempt",
        Job(suspended=True),
        then.reaches("Suspended"),
        when.suspend(False),
        then.runs(1),
        needs="suspend",
    ),
    case(
        "given a job without restarts left, when a worker fails, then no pod runs any more",
        Job(),
        then.runs(),
        when.ends(0, code=1),
        then.reaches("Failed"),
        then.expect(nothing_runs),
        needs="any",
    ),
    case(
        "given a job that has succeeded, then its pods stay for their logs",
        Job(),
        then.runs(),
        when.ends(0, 1),
        then.reaches("Succeeded"),
        then.stays(then.kept(0, 1)),
        needs="any",
    ),
    case(
        "given a group, then each pod has a host name in the domain of the headless service",
        Job(),
        then.runs(),
        then.pod(0, {"spec.subdomain": "job", "spec.hostname": bool}),
        then.pod(1, {"spec.subdomain": "job", "spec.hostname": bool}),
        needs="service",
    ),
    case(
        "given another controller in managedBy, when the operator is named instead, then the API server refuses that",
        Job(manager="example.com/other"),
        then.refuses_edit("managedBy", managedBy="trainyard.dev/operator"),
        needs="managed by",
    ),
    case(
        "given one worker, when it is killed and its group restarts, then the second attempt can still succeed",
        Job(workers=1, restarts=1),
        then.runs(workers=1),
        when.ends(0, code=137),
        then.runs(2, workers=1),
        when.ends(0),
        then.reaches("Succeeded"),
        then.expect(has_restarted(1)),
        needs="gang restart",
    ),
)
