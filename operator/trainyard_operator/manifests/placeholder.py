"""Placeholder pods: they request the resources of one worker and do nothing, so one runs if a worker could."""

from typing import Any

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.children import child_metadata
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.template import Manifest

WAIT = "import signal; end = {signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, end); signal.sigwait(end)"
"""Program that waits for SIGTERM, which process 1 of a container ignores unless it waits for it."""
_GRACE_SECONDS = 5
_KEPT = ("image", "imagePullPolicy", "securityContext")


def build_placeholder(job: TrainingJob, pod_attempt: int, index: int, *, trainer_image: str) -> Manifest:
    """Return the manifest of a placeholder.

    The scheduler, quotas and admission see a worker without its group: its labels, node constraints, volumes, and the
    resources of all containers. Each container runs the worker's image, so that a node without it pulls it in
    advance.

    Args:
        job: the job at its current size.
        pod_attempt: attempt that the pods of the group were created for.
        index: index of the placeholder in the group, from 0.
        trainer_image: image of the built-in trainer, unless spec.image names another.
    """
    worker = build_pod(job, pod_attempt, 0, trainer_image=trainer_image, alone=True)
    spec: Manifest = {k: v for k, v in worker["spec"].items() if k not in ("hostname", "subdomain", "initContainers")}
    [main] = [c for c in spec["containers"] if c["name"] == constants.WORKER_CONTAINER]
    kept = {key: main[key] for key in _KEPT if key in main}
    # In the network of a node the ports decide, too, where a worker fits. Without names, since nothing is served.
    ports = main.get("ports", ()) if spec.get("hostNetwork") is True else ()
    of_worker = {**kept, "ports": [{"containerPort": port["containerPort"]} for port in ports]} if ports else kept
    spec |= {
        "containers": [_waiting(each, of_worker if each is main else kept) for each in spec["containers"]],
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
    }
    labels = {
        **worker["metadata"]["labels"],
        constants.LABEL_INDEX: str(index),
        constants.LABEL_ROLE: constants.ROLE_PLACEHOLDER,
    }
    metadata = child_metadata(job, job.placeholder_name(pod_attempt, index), labels)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _waiting(container: Manifest, kept: dict[str, Any]) -> Manifest:
    resources = {"resources": container["resources"]} if "resources" in container else {}
    return {"name": container["name"], "command": ["python", "-c", WAIT], **kept, **resources}
