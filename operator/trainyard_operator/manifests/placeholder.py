"""A pod that does nothing but ask for the room of one more worker: it runs as soon as such a worker could."""

from typing import Any

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.children import Manifest, child_metadata
from trainyard_operator.manifests.pod import build_pod

WAIT = "import signal; end = {signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, end); signal.sigwait(end)"
"""Wait to be told to end. As process 1 of a container it would ignore a signal that it does not wait for."""
_GRACE_SECONDS = 5
_KEPT = ("image", "imagePullPolicy", "securityContext")


def build_placeholder(job: TrainingJob, group: int, index: int, *, trainer_image: str) -> Manifest:
    """The manifest of a placeholder.

    It is a worker as far as the scheduler, quotas and admission look: labels, node constraints, volumes, the resources
    of all its containers. Each of them runs the worker's image, so that a node that has not got it pulls it now.

    Args:
        job: the job, with as many workers as the group has.
        group: attempt that the group's pods were made for.
        index: number of the placeholder in that group, from 0.
        trainer_image: as for `build_pod`.
    """
    worker = build_pod(job, group, 0, trainer_image=trainer_image)
    spec: Manifest = {k: v for k, v in worker["spec"].items() if k not in ("hostname", "subdomain", "initContainers")}
    [main] = [c for c in spec["containers"] if c["name"] == constants.WORKER_CONTAINER]
    kept = {key: main[key] for key in _KEPT if key in main}
    spec |= {
        "containers": [_waiting(container, kept) for container in spec["containers"]],
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
    }
    labels = {
        **worker["metadata"]["labels"],
        constants.LABEL_INDEX: str(index),
        constants.LABEL_ROLE: constants.ROLE_PLACEHOLDER,
    }
    metadata = child_metadata(job, job.placeholder_name(group, index), labels)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _waiting(container: Manifest, kept: dict[str, Any]) -> Manifest:
    resources = {"resources": container["resources"]} if "resources" in container else {}
    return {"name": container["name"], "command": ["python", "-c", WAIT], **kept, **resources}
