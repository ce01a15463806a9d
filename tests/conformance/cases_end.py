"""How workers end and do not start, and what becomes of the job and of its pods: cleanPodPolicy, successPolicy."""

from tests.conformance import then, when
from tests.conformance.backends import now
from tests.conformance.model import Job, Object, case
from tests.support import kubelet

COUNTED = {"restarts": 1, "restartsCounted": 1}


def out_of_memory() -> Object:
    """Return the status of a container that the kernel has killed."""
    return kubelet.ended(now(), 137, reason="OOMKilled")


CASES = (
    # --- kinds of failures -----------------------------------------------------------------------------------
    case(
        "given a worker that runs out of memory, then the failure is OOMKilled and counts",
        Job(restarts=1),
        then.runs(),
        when.becomes(1, status=out_of_memory),
        then.runs(2),
        then.status(COUNTED),
        then.failure(reason="OOMKilled", exitCode=137),
    ),
    case(
        "given a pod that is evicted for its own storage limit, then that counts as a failure of the program",
        Job(),
        then.runs(),
        when.becomes(0, status=lambda: kubelet.over_its_limit(now())),
        then.reaches("Failed"),
        then.failure(reason="StorageLimitExceeded"),
    ),
    case(
        "given an init container that fails, then the failure names it",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.becomes(0, status=lambda: kubelet.init_failed(now(), 3)),
        then.reaches("Failed"),
        then.failure(container="setup", exitCode=3, reason="InitContainerFailed"),
        starts=False,
    ),
    case(
        "given an image name that is malformed, then the job fails at once, with all of its restarts left",
        Job(restarts=3),
        then.has_pods((1, 0), (1, 1)),
        when.becomes(0, status=lambda: kubelet.waiting("InvalidImageName", "couldn't parse image name")),
        then.says("Failed", "True", "ContainerCannotStart"),
        then.status({"restarts": 0}),
        starts=False,
    ),
    case(
        "given an image that cannot be pulled, then the job waits and names pod and image",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.becomes(1, status=lambda: kubelet.waiting("ImagePullBackOff", "Back-off pulling image")),
        then.says("Running", "False", "ImagePullFailed", "1 of 2 workers: pod job-1-1: cannot pull image"),
        then.reaches("Pending"),
        starts=False,
    ),
    case(
        "given a pod that no node has capacity for, then the job has the words of the scheduler",
        Job(),
        then.has_pods((1, 0), (1, 1)),
        when.is_unschedulable(1, words="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        then.says("Running", "False", "Unschedulable", "1 of 2 workers", "3 Insufficient nvidia.com/gpu"),
        starts=False,
    ),
    case(
        "given a sidecar that keeps running, when the workers succeed, then the job has, too, and the pod is deleted",
        Job(),
        then.runs(),
        when.ends(1),
        when.becomes(0, status=lambda: kubelet.beside_sidecar(kubelet.ended(now(), 0))),
        then.reaches("Succeeded"),
        then.has_pods((1, 1)),
    ),
    case(
        "given a sidecar that keeps running, when a worker fails, then the job has failed and the pod is deleted",
        Job(),
        then.runs(),
        when.ends(1, code=1),
        when.becomes(0, status=lambda: kubelet.beside_sidecar(kubelet.ended(now(), 1))),
        then.reaches("Failed"),
        when.go((1, 0)),
        then.has_pods((1, 1)),
        terminates=False,
    ),
    # --- cleanPodPolicy and successPolicy --------------------------------------------------------------------
    case(
        "given cleanPodPolicy Running, when a worker fails, then running pods are deleted and the failed one stays",
        Job(spec={"cleanPodPolicy": "Running"}),
        then.runs(),
        when.ends(0, code=1),
        then.reaches("Failed"),
        then.has_pods((1, 0)),
        then.stays(then.kept(0), 0.5),
    ),
    case(
        "given cleanPodPolicy All, when a worker fails, then all pods are deleted",
        Job(spec={"cleanPodPolicy": "All"}),
        then.runs(),
        when.ends(0, code=1),
        then.reaches("Failed"),
        then.has_pods(),
        node=True,
    ),
    case(
        "given cleanPodPolicy None, when a worker fails, then all pods stay, also after another change of the job",
        Job(spec={"cleanPodPolicy": "None"}),
        then.runs(),
        when.ends(0, code=1),
        then.reaches("Failed"),
        when.edit(activeDeadlineSeconds=9),
        then.status({"observedGeneration": 2}),
        then.stays(then.kept(0, 1), 1),
        node=True,
    ),
    case(
        "given successPolicy RankZero, when worker 0 ends with 0, then the job has succeeded and others are deleted",
        Job(spec={"successPolicy": "RankZero"}),
        then.runs(),
        when.ends(0),
        then.says("Succeeded", "True", "RankZeroSucceeded"),
        then.has_pods((1, 0)),
        node=True,
    ),
    case(
        "given successPolicy RankZero, when a peer fails just before worker 0 ends with 0, then the job has succeeded",
        Job(spec={"successPolicy": "RankZero"}),
        then.runs(),
        when.at_once(when.ends(1, code=1), when.ends(0)),
        then.says("Succeeded", "True", "RankZeroSucceeded"),
        then.status({"restarts": 0}),
    ),
)
