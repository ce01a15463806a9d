"""Failures and disruptions: which of them restart the group, count, or end the job; attempts never overlap."""

import time

from tests.conformance import then, when
from tests.conformance.backends import now
from tests.conformance.model import Job, Step, case
from tests.conformance.trial import Trial
from tests.support import kubelet

FREE = {"restarts": 1, "restartsCounted": 0}
COUNTED = {"restarts": 1, "restartsCounted": 1}
NODE_NAME = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms.0.matchFields"


def attempt_2_comes_after(seconds: float) -> Step:
    """The first pod of attempt 2 is created this many seconds from now or later, and the job says what it waits for.

    Up to a quarter of a backoff is left out.
    """

    async def step(trial: Trial) -> None:
        begun = time.monotonic()
        await then.has_said("Running", "False", "BackingOff")(trial)
        await then.has_pods((2, 0), (2, 1))(trial)
        assert time.monotonic() - begun >= seconds

    return step


LOST = "pod job-1-0 has not terminated 30 s after its grace period, so node node-1 is considered lost; deleting the pod"

CASES = (
    # The longest one, so that it begins first.
    case(
        "given a pod on a node that does not answer, when it is overdue for 30 s, then it is deleted by force",
        Job(),
        then.runs(),
        when.delete_pod(0, seconds=1),
        then.has_said("Running", "False", "WaitingForOldPods"),
        when.go((1, 1)),
        then.has_pods((1, 0)),
        then.stays(then.pods_are((1, 0)), 15),
        then.runs(2),
        then.status(FREE),
        then.event_says("PodOverdue", LOST, "by force"),
        then.tells("Accepted", "AllWorkersRunning", "Disrupted", "PodOverdue", "AllWorkersRunning"),
        terminates=False,
    ),
    # --- the group as a whole --------------------------------------------------------------------------------
    case(
        "given 2 workers, when rank 1 fails, then both pods are replaced by those of attempt 2",
        Job(restarts=1),
        then.runs(),
        when.ends(1, code=1),
        then.runs(2),
        needs="gang restart",
        node=True,
    ),
    case(
        "given 3 workers, when one is killed, then the restart is counted and the failure is named",
        Job(workers=3, restarts=3),
        then.runs(workers=3),
        when.ends(1, code=137, message="killed"),
        then.runs(2, workers=3),
        then.status({**COUNTED, "attempt": 2}),
        then.failure(pod="job-1-1", exitCode=137, reason="SIGKILL", attempt=1, node=bool),
    ),
    case(
        "given pods that take long to end, when one fails, then attempt 2 has no pod until the last is gone",
        Job(workers=3, restarts=1),
        then.runs(workers=3),
        when.ends(1, code=1),
        then.has_said("Running", "False", "WaitingForOldPods"),
        then.has_pods((1, 0), (1, 2)),
        then.expect(then.kept()),
        when.go((1, 0)),
        then.has_pods((1, 2)),
        then.stays(then.pods_are((1, 2)), 0.5),
        when.go((1, 2)),
        then.runs(2, workers=3),
        terminates=False,
    ),
    case(
        "given a limit of 1 restart, when the second attempt fails, then the job has failed and names the limit",
        Job(workers=1, restarts=1),
        then.runs(workers=1),
        when.ends(0, code=1),
        then.runs(2, workers=1),
        when.ends(0, code=1, message='{"rank": 0, "exception": "ValueError", "message": "no data"}'),
        then.says("Failed", "True", "RestartLimitReached", "restartPolicy.maxRestarts is 1"),
        then.failure(reason="ValueError", message="no data", attempt=2),
        then.tells("Accepted", "AllWorkersRunning", "WorkerFailed", "AllWorkersRunning", "RestartLimitReached"),
    ),
    case(
        "given no restarts, when a worker fails, then the job fails at once",
        Job(),
        then.runs(),
        when.ends(0, code=3),
        then.reaches("Failed"),
        needs="any",
    ),
    case(
        "given no restarts left, when the limit is raised before the failure, then the group restarts",
        Job(),
        then.runs(),
        when.edit(restartPolicy={"maxRestarts": 1}),
        when.ends(0, code=1),
        then.runs(2),
    ),
    case(
        "given a failure whose cause is in the log, then the status has its last line",
        Job(),
        then.runs(),
        when.ends(1, code=1, message="disk is full"),
        then.reaches("Failed"),
        then.failure(pod="job-1-1", exitCode=1, message=then.has("disk is full")),
        node=True,
    ),
    case(
        "given a backoff of 8 s, when a worker fails, then attempt 2 waits for it",
        Job(restarts=1, spec={"restartPolicy": {"backoff": {"initialSeconds": 8}}}),
        then.runs(),
        when.at_once(when.ends(1, code=1), attempt_2_comes_after(6)),
        then.runs(2),
    ),
    # --- rules -----------------------------------------------------------------------------------------------
    case(
        "given a rule Fail for an exit code, when a worker ends with it, then the job fails and the rule is named",
        Job(restarts=3, spec={"restartPolicy": {"rules": [{"onExitCodes": [3], "action": "Fail"}]}}),
        then.runs(),
        when.ends(0, code=3),
        then.says("Failed", "True", "RestartRule", "rules[0]"),
        node=True,
    ),
    case(
        "given a rule RestartIgnoringLimit, when a worker ends with its exit code, then the restart does not count",
        Job(spec={"restartPolicy": {"rules": [{"onExitCodes": [42], "action": "RestartIgnoringLimit"}]}}),
        then.runs(),
        when.ends(0, code=42),
        then.runs(2),
        then.status(FREE),
        node=True,
    ),
    case(
        "given a rule Restart for evictions, when a pod is evicted, then the restart counts",
        Job(restarts=1, spec={"restartPolicy": {"rules": [{"onReasons": ["Evicted"], "action": "Restart"}]}}),
        then.runs(),
        when.becomes(0, status=kubelet.evicted),
        then.runs(2),
        then.status(COUNTED),
    ),
    # --- disruptions -----------------------------------------------------------------------------------------
    case(
        "given no restarts, when a pod is deleted, then the group restarts and none is counted",
        Job(),
        then.runs(),
        when.delete_pod(0),
        then.runs(2),
        then.status(FREE),
        then.failure(reason="Deleted"),
        node=True,
    ),
    case(
        "given no restarts, when a pod is evicted, then the group restarts and none is counted",
        Job(),
        then.runs(),
        when.becomes(0, status=kubelet.evicted),
        then.runs(2),
        then.status(FREE),
        then.failure(reason="Evicted"),
    ),
    case(
        "given no restarts, when the scheduler preempts a pod, then the group restarts and none is counted",
        Job(),
        then.runs(),
        when.becomes(1, status=lambda: kubelet.disrupted(kubelet.ended(now(), 143))),
        then.runs(2),
        then.status({**FREE, "disruptions": 1}),
        then.failure(reason="PreemptionByScheduler"),
    ),
    case(
        "given no restarts, when a node refuses a pod, then the next attempt avoids it until all workers run",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.becomes(0, status=lambda: kubelet.refused("OutOfnvidia.com/gpu")),
        then.has_pods((2, 0), (2, 1)),
        then.has_said("Restarting", "True", "Disrupted"),
        then.status({**FREE, "disruptions": 1, "refusingNodes": ["node-1"]}),
        then.pod(0, {NODE_NAME: [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}),
        then.pod(1, {NODE_NAME: [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}),
        when.start(0, 1),
        then.status({"refusingNodes": []}),
        starts=False,
    ),
    case(
        "given a limit of 1 disruption, when a second pod is evicted, then the job fails and says which limit it was",
        Job(spec={"restartPolicy": {"maxDisruptions": 1}}),
        then.runs(),
        when.becomes(0, status=kubelet.evicted),
        then.runs(2),
        when.becomes(0, status=kubelet.evicted),
        then.says("Failed", "True", "DisruptionLimitReached", "restartPolicy.maxDisruptions is 1"),
    ),
)
