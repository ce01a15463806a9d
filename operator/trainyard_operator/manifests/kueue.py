"""Queues of Kueue, as a group of plain pods.

Kueue knows no TrainingJob. Its documentation has two ways for that: a controller in Go that is built with Kueue's job
framework and has rights on its Workloads and a webhook of its own, or groups of plain pods for controllers that manage
pods themselves. The latter needs no rights at all: Kueue creates the Workload.

Each attempt is a group of its own. A pod of a group that ended without success keeps its quota, and by a finalizer its
object, until it is replaced, while the operator replaces no pod before all pods of the attempt are gone. So the pods
say that they are never replaced (retriable-in-group: false): once all of them have ended, and no earlier, Kueue gives
their quota away and removes its finalizer.
"""

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.sizing.topology import domain_workers
from trainyard_operator.lifecycle.scheduling_blockers import KUEUE_GATE, KUEUE_GROUP_LABEL, KUEUE_QUEUE_LABEL

_PREFIX = "kueue.x-k8s.io"


def kueue_queue(job: TrainingJob) -> str | None:
    """Return the LocalQueue of a job; None if it has none. A queue with gang: volcano is Volcano's."""
    scheduling = job.spec.scheduling
    return None if scheduling is None or scheduling.gang == "volcano" else scheduling.queue


def queue_labels(job: TrainingJob, group: str) -> dict[str, str]:
    """Return the labels of the pods of a group in a queue; empty without a queue."""
    queue = kueue_queue(job)
    return {KUEUE_QUEUE_LABEL: queue, KUEUE_GROUP_LABEL: group} if queue else {}


def queue_annotations(job: TrainingJob, index: int) -> dict[str, str]:
    """Return the annotations of a pod of a group in a queue; empty without a queue."""
    if kueue_queue(job) is None:
        return {}
    return {
        f"{_PREFIX}/pod-group-total-count": str(job.spec.pods),
        f"{_PREFIX}/retriable-in-group": "false",
        **_topology_annotations(job, index),
    }


def queue_gates(job: TrainingJob) -> list[dict[str, str]]:
    """Return the scheduling gates of the pods of a job in a queue; empty without a queue.

    Kueue would set its gate itself. A pod that has it from the beginning cannot pass a queue whose Kueue is missing.
    """
    return [{"name": KUEUE_GATE}] if kueue_queue(job) else []


def _topology_annotations(job: TrainingJob, index: int) -> dict[str, str]:
    """Return Kueue's topology request of a pod: in which domain, and with how many of its neighbours."""
    scheduling = job.spec.scheduling
    if scheduling is None or scheduling.topology_key is None:
        return {}
    key, workers = scheduling.topology_key, domain_workers(job.spec)
    request = {f"{_PREFIX}/podset-preferred-topology": key}
    if not job.spec.is_parameter_server(index):
        # Neighbouring ranks get neighbouring nodes.
        request[f"{_PREFIX}/pod-group-pod-index-label"] = constants.LABEL_INDEX
        if workers > 1:
            request[f"{_PREFIX}/podset-slice-required-topology"] = key
            request[f"{_PREFIX}/podset-slice-size"] = str(workers)
    return request
