"""Manifests of the children of a job other than pods, and the metadata that all children share."""

import hashlib
import json
from importlib.resources import files

from trainyard.protocol import constants
from trainyard.resolve import resolve
from trainyard.resource.job import TrainingJob
from trainyard_operator.manifests.template import Manifest


def child_metadata(job: TrainingJob, name: str, labels: dict[str, str] | None = None) -> Manifest:
    """Return the metadata of a child that is owned by the job, so that it is deleted with the job."""
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": {
            **(labels or {}),
            constants.LABEL_JOB: job.metadata.name,
            constants.LABEL_MANAGED_BY: constants.MANAGED_BY,
        },
        "ownerReferences": [
            {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": job.metadata.name,
                "uid": job.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def build_service(job: TrainingJob) -> Manifest:
    """Return the headless Service that gives every worker a DNS name, which the rendezvous needs before readiness."""
    ports = [{"name": "rendezvous", "port": constants.RENDEZVOUS_PORT}]
    if job.spec.metrics_endpoint is not None:
        ports.append({"name": "metrics", "port": job.spec.metrics_endpoint.port})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(job, job.metadata.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {constants.LABEL_JOB: job.metadata.name},
            "ports": ports,
        },
    }


def build_claim(job: TrainingJob) -> Manifest | None:
    """Return the claim for the checkpoints, if the job has one. A retained claim has no owner."""
    claim = job.spec.checkpoint.claim if job.spec.checkpoint else None
    if claim is None:
        return None
    metadata = child_metadata(job, job.metadata.name)
    if claim.retain:
        del metadata["ownerReferences"]
    spec: Manifest = {
        "accessModes": list(claim.access_modes),
        "resources": {"requests": {"storage": claim.size}},
    }
    if claim.storage_class_name:
        spec["storageClassName"] = claim.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def secret_name(job: TrainingJob, token: str) -> str:
    """Return the name of the Secret with a token: it has a hash of the token, and so identifies the content."""
    return f"{job.metadata.name}-{hashlib.sha256(token.encode()).hexdigest()[:10]}"


def build_secret(job: TrainingJob, token: str) -> Manifest | None:
    """Return the Secret with the job's token, if its pods accept restart requests."""
    if not job.spec.restarts_in_place:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": child_metadata(job, secret_name(job, token)),
        "stringData": {constants.TOKEN_KEY: token},
        "immutable": True,
    }


def build_shared(job: TrainingJob, token: str) -> list[Manifest]:
    """Return all objects that the pods of a job need; `token` is `Backend.launcher_token`."""
    children = (build_service(job), build_config_map(job), build_claim(job), build_secret(job, token))
    return [child for child in children if child is not None]


def build_config_map(job: TrainingJob) -> Manifest | None:
    """Return the ConfigMap of a job; None if it needs none.

    It holds the resolved configuration of the built-in trainer, or the launcher for a user's program that restarts in
    place.
    """
    if job.spec.trainer is not None:
        data = {constants.CONFIG_FILE: json.dumps(resolve(job).to_dict(), indent=2)}
    elif job.spec.restarts_in_place:
        source = files("trainyard.protocol")
        data = {name: source.joinpath(name).read_text("utf-8") for name in constants.LAUNCHER_FILES}
    else:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(job, job.metadata.name),
        "data": data,
    }
