"""Manifests of the pods of a job: the user's template, overridden by the operator's own pod spec."""

import copy
from collections.abc import Sequence
from typing import Any

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import READY_PATH
from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import ParameterServerSpec, Workers
from trainyard_operator.manifests.children import Manifest, child_metadata
from trainyard_operator.manifests.merge import merge_pod_spec
from trainyard_operator.manifests.revision import revision_hash

TRAINER_COMMAND = ["python", "-m", "trainyard_trainer"]

NON_ROOT = 65532
"""User and group ID of the built-in trainer."""

GRACE_SECONDS = 120
"""Default grace period of pods that write checkpoints."""

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_LOST_NODE_SECONDS = 30
"""Seconds on an unreachable node after which the cluster deletes the pod. With Kubernetes' default of 300 the rest of
the group would wait for a worker that is gone."""


def build_pod(job: TrainingJob, attempt: int, index: int, *, trainer_image: str, secret: str | None = None) -> Manifest:
    """Return the manifest of a worker, or with the index after the last worker of the parameter server.

    Args:
        job: the job at its current size.
        attempt: attempt that the pod is created for.
        index: node rank of the pod in its group, from 0.
        trainer_image: image of the built-in trainer, unless spec.image names another.
        secret: name of the Secret with the job's token, if the pod accepts restart requests; else None.
    """
    template = _role_spec(job, index).template
    labels = {
        **(template.metadata.labels or {}),
        constants.LABEL_ATTEMPT: str(attempt),
        constants.LABEL_INDEX: str(index),
        constants.LABEL_REPLICAS: str(job.spec.workers.replicas),
        constants.LABEL_ROLE: constants.ROLE_SERVER if job.spec.is_parameter_server(index) else constants.ROLE_WORKER,
    }
    if job.status.accepted_revision:
        labels[constants.LABEL_REVISION] = revision_hash(job.status.accepted_revision)
    metadata = child_metadata(job, job.pod_name(attempt, index), labels)
    annotations = {**(template.metadata.annotations or {}), **_scrape_annotations(job)}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": merge_pod_spec(template.spec, _own_spec(job, attempt, index, trainer_image, secret)),
    }


def _role_spec(job: TrainingJob, index: int) -> Workers | ParameterServerSpec:
    """Return the part of the spec that describes the pod: workers or parameterServer."""
    return (
        job.spec.parameter_server or ParameterServerSpec() if job.spec.is_parameter_server(index) else job.spec.workers
    )


def _scrape_annotations(job: TrainingJob) -> dict[str, str]:
    """Return the annotations by which Prometheus finds a metrics page; empty if the pods serve none."""
    page = job.spec.metrics_endpoint
    if page is None:
        return {}
    return {
        constants.ANNOTATION_SCRAPE: "true",
        constants.ANNOTATION_PORT: str(page.port),
        constants.ANNOTATION_PATH: page.path,
    }


def _own_spec(job: TrainingJob, attempt: int, index: int, trainer_image: str, secret: str | None) -> Manifest:
    """Return the pod spec that overrides the template."""
    worker = _worker_container(job, attempt, index, trainer_image)
    if secret is not None:
        _add_launcher(worker, secret)
    spec: Manifest = {
        "restartPolicy": "Never",  # the operator restarts the complete group
        "hostname": job.pod_name(attempt, index),
        "subdomain": job.metadata.name,
        "containers": [worker],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if (tolerations := _tolerations(_role_spec(job, index).template.spec.get("tolerations") or [])) is not None:
        spec["tolerations"] = tolerations
    if job.status.avoided_nodes:
        spec["affinity"] = _avoiding(job.status.avoided_nodes, _role_spec(job, index).template.spec.get("affinity"))
    if job.spec.checkpoint is not None:
        source = job.spec.checkpoint.volume or {"persistentVolumeClaim": {"claimName": job.metadata.name}}
        spec["volumes"].append({"name": "checkpoints", **source})
    if job.spec.trainer is not None and job.spec.checkpoint is not None:
        spec["terminationGracePeriodSeconds"] = _grace_seconds(job, index)
    if job.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [s.to_dict() for s in job.spec.image_pull_secrets]
    if job.spec.trainer is not None or secret is not None:
        spec["volumes"].append({"name": "config", "configMap": {"name": job.metadata.name}})
    if job.spec.trainer is not None:
        spec["volumes"].append({"name": "tmp", "emptyDir": {}})
        spec["automountServiceAccountToken"] = False  # workers need no credentials
        spec["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": NON_ROOT,
            "runAsGroup": NON_ROOT,
            "fsGroup": NON_ROOT,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    return spec


def _avoiding(nodes: Sequence[str], template_affinity: Any) -> Manifest:
    """Return the template's affinity with the requirement to avoid nodes."""
    expression = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(nodes)}
    affinity: Manifest = copy.deepcopy(template_affinity) if isinstance(template_affinity, dict) else {}
    required = affinity.setdefault("nodeAffinity", {}).setdefault(_REQUIRED, {})
    # The scheduler needs only one of the terms to match, so each must contain the requirement.
    for term in required.setdefault("nodeSelectorTerms", [{}]):
        term["matchExpressions"] = [*term.get("matchExpressions", ()), expression]
    return affinity


def _tolerations(given: Any) -> list[Any] | None:
    """Return the template's tolerations, plus the operator's for taints of lost nodes that it does not mention.

    None leaves the template unchanged: the API server rejects what is not a list of objects.
    """
    if not isinstance(given, list) or not all(isinstance(toleration, dict) for toleration in given):
        return None
    added = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _LOST_NODE_SECONDS}
        for key in _LOST_NODE_TAINTS
        if not any(_tolerates_eviction_by(toleration, key) for toleration in given)
    ]
    return [*given, *added]


def _tolerates_eviction_by(toleration: Manifest, key: str) -> bool:
    """Return whether a toleration applies to evictions by a taint (as in the plugin DefaultTolerationSeconds)."""
    return toleration.get("key", "") in (key, "") and toleration.get("effect", "") in ("NoExecute", "")


def _grace_seconds(job: TrainingJob, index: int) -> int:
    """Return the seconds in which a terminating pod can write a last checkpoint."""
    return int(_role_spec(job, index).template.spec.get("terminationGracePeriodSeconds", GRACE_SECONDS))


def _worker_container(job: TrainingJob, attempt: int, index: int, trainer_image: str) -> Manifest:
    """Return the worker container, before the user's template is merged."""
    spec = job.spec
    container: Manifest = {
        "name": constants.WORKER_CONTAINER,
        "image": spec.image or trainer_image,
        "env": [*(e.to_dict() for e in spec.env or ()), *rendezvous_env(job, attempt, index)],
        "resources": _role_spec(job, index).resources.to_dict(),
        # NCCL and data loaders share memory between processes; the default /dev/shm has 64 MB.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.checkpoint is not None:
        container["volumeMounts"].append({"name": "checkpoints", "mountPath": constants.CHECKPOINT_MOUNT})
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    if spec.metrics_endpoint is not None:
        container["ports"] = [{"name": "metrics", "containerPort": spec.metrics_endpoint.port}]
    if spec.trainer is None:
        container["command"] = list(spec.command or ())
        if spec.args:
            container["args"] = list(spec.args)
        return container
    container["command"] = TRAINER_COMMAND
    container["volumeMounts"] += [
        {"name": "config", "mountPath": constants.CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return container


def _add_launcher(worker: Manifest, secret: str) -> None:
    """Enable restarts in place: the worker runs under a launcher, and is ready only while its attempt runs.

    The operator notices the end of an attempt by the lost readiness.
    """
    source = {"secretKeyRef": {"name": secret, "key": constants.TOKEN_KEY}}
    worker["env"].append({"name": launcher_protocol.ENV_TOKEN, "valueFrom": source})
    port = {"name": constants.LAUNCHER_PORT_NAME, "containerPort": launcher_protocol.LAUNCHER_PORT}
    worker.setdefault("ports", []).append(port)
    if worker["command"] != TRAINER_COMMAND:  # the trainer has its own launcher
        worker["command"] = ["python3", f"{constants.CONFIG_FOLDER}/{constants.LAUNCHER_FILE}", *worker["command"]]
        worker["volumeMounts"].append({"name": "config", "mountPath": constants.CONFIG_FOLDER, "readOnly": True})
    worker["readinessProbe"] = {
        "httpGet": {"path": READY_PATH, "port": constants.LAUNCHER_PORT_NAME},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }


def rendezvous_env(job: TrainingJob, attempt: int, index: int) -> list[dict[str, Any]]:
    """Return the environment variables of the rendezvous, which a user's own program gets too.

    `torchrun` reads the PET_ variables; a program with one process per worker finds its peers by `env://`, which needs
    MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE. With more processes per worker torchrun sets the ranks. A parameter
    server is the last rank and always has one process.
    """
    serves = job.spec.is_parameter_server(index)
    procs = 1 if serves else job.spec.procs_per_worker
    master = f"{job.pod_name(attempt, 0)}.{job.metadata.name}.{job.metadata.namespace}.svc"
    values = {
        constants.ENV_JOB: job.metadata.name,
        constants.ENV_NAMESPACE: job.metadata.namespace,
        launcher_protocol.ENV_ATTEMPT: str(attempt),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(constants.RENDEZVOUS_PORT),
        "PET_NNODES": str(job.spec.pods),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(procs),
    }
    if procs == 1:
        values |= {"RANK": str(job.spec.world_size if serves else index), "LOCAL_RANK": "0"}
    if procs == 1 or job.spec.servers:
        values["WORLD_SIZE"] = str(job.spec.world_size + job.spec.servers)
    if job.spec.checkpoint is not None:
        values[constants.ENV_CHECKPOINTS] = f"{constants.CHECKPOINT_MOUNT}/{job.metadata.name}"
        if job.spec.trainer is not None:
            values[constants.ENV_GRACE] = str(_grace_seconds(job, index))
    if job.spec.trainer is not None:
        values[constants.ENV_CONFIG] = f"{constants.CONFIG_FOLDER}/{constants.CONFIG_FILE}"
    if job.spec.metrics_endpoint is not None:
        values[constants.ENV_METRICS_PORT] = str(job.spec.metrics_endpoint.port)
    return [{"name": name, "value": value} for name, value in values.items()]
