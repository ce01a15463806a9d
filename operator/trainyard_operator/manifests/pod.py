"""Manifests of the pods of a job: the user's template, overridden by the operator's own pod spec."""

from typing import Any

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import READY_PATH
from trainyard.resource.devices import counted_devices, devices, is_gpu
from trainyard.resource.job import TrainingJob
from trainyard.resource.spec import ParameterServerSpec, Workers
from trainyard.sizing.fit import uses_gpus
from trainyard_operator.manifests.checkpoint_folder import folder_container
from trainyard_operator.manifests.children import child_metadata
from trainyard_operator.manifests.merge import merge_pod_spec, merge_resources
from trainyard_operator.manifests.revision import revision_hash
from trainyard_operator.manifests.scheduling import scheduling_fields, scheduling_metadata
from trainyard_operator.manifests.shared_memory import (
    SHARED_MEMORY_PATH,
    SHARED_MEMORY_VOLUME,
    build_shared_memory,
)
from trainyard_operator.manifests.template import (
    VOLUME_PREFIX,
    Manifest,
    Template,
    TemplateError,
    read_template,
)

TRAINER_COMMAND = ["python", "-P", "-m", "trainyard_trainer"]
"""Command of the built-in trainer. -P: a module in the working directory must not replace one of the trainer's."""

NON_ROOT = 65532
"""User and group ID of the built-in trainer."""

GRACE_SECONDS = 120
"""Default grace period of pods that write checkpoints."""

CHECKPOINT_VOLUME = f"{VOLUME_PREFIX}checkpoints"
CONFIG_VOLUME = f"{VOLUME_PREFIX}config"
TMP_VOLUME = f"{VOLUME_PREFIX}tmp"
CONFIG_MOUNT = {"name": CONFIG_VOLUME, "mountPath": constants.CONFIG_FOLDER, "readOnly": True}

_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_LOST_NODE_SECONDS = 30
"""Seconds on an unreachable node after which the cluster deletes the pod. With Kubernetes' default of 300 the rest of
the group would wait for a worker that is gone."""


def build_pod(
    job: TrainingJob,
    attempt: int,
    index: int,
    *,
    trainer_image: str,
    cluster_domain: str = "",
    secret: str | None = None,
    alone: bool = False,
) -> Manifest:
    """Return the manifest of a worker, or with the index after the last worker of the parameter server.

    Args:
        job: the job at its current size.
        attempt: attempt that the pod is created for.
        index: node rank of the pod in its group, from 0.
        trainer_image: image of the built-in trainer, unless spec.image names another.
        cluster_domain: DNS domain of the cluster; empty if it is not known.
        secret: name of the Secret with the job's token, if the pod accepts restart requests; else None.
        alone: whether the pod is scheduled by itself, and not as a part of its group (`scheduling_fields`).

    Raises:
        TemplateError: no pod can be built from the user's template.
    """
    role = "parameterServer" if job.spec.is_parameter_server(index) else "workers"
    template = _role_spec(job, index).template
    given = read_template(template.spec, f"spec.{role}.template.spec")
    group_labels, group_annotations = scheduling_metadata(job, attempt, index, alone=alone)
    labels = {
        **(template.metadata.labels or {}),
        **group_labels,
        constants.LABEL_ATTEMPT: str(attempt),
        constants.LABEL_INDEX: str(index),
        constants.LABEL_REPLICAS: str(job.spec.workers.replicas),
        constants.LABEL_ROLE: constants.ROLE_SERVER if job.spec.is_parameter_server(index) else constants.ROLE_WORKER,
    }
    if job.status.accepted_revision:
        labels[constants.LABEL_REVISION] = revision_hash(job.status.accepted_revision)
    metadata = child_metadata(job, job.pod_name(attempt, index), labels)
    annotations = {**(template.metadata.annotations or {}), **group_annotations, **_scrape_annotations(job)}
    if annotations:
        metadata["annotations"] = annotations
    fixed = rendezvous_env(job, attempt, index, cluster_domain, grace_seconds=_grace_seconds(given))
    worker = _worker_container(job, index, fixed, trainer_image, secret, given)
    own = _own_spec(job, attempt, index, worker, secret, given)
    own |= scheduling_fields(job, attempt, index, given, alone=alone)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": merge_pod_spec(given, own)}


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


def _own_spec(
    job: TrainingJob, attempt: int, index: int, worker: Manifest, secret: str | None, template: Template
) -> Manifest:
    """Return the pod spec that overrides the template; `worker` is its container."""
    spec: Manifest = {
        "restartPolicy": "Never",  # the operator restarts the complete group
        "hostname": job.pod_name(attempt, index),
        "subdomain": job.metadata.name,
        # The variables of a Service named trainyard-... would be taken for those of the operator.
        "enableServiceLinks": False,
        "containers": [worker],
        "volumes": [build_shared_memory(job, index, template, merge_resources(template, worker["resources"]))],
    }
    # Pods in the network of their node find the group's Service only with this policy.
    if template.host_network:
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    if (tolerations := _tolerations(template.spec.get("tolerations") or [])) is not None:
        spec["tolerations"] = tolerations
    if job.spec.checkpoint is not None and job.spec.checkpoint.url is None:
        source = job.spec.checkpoint.volume or {"persistentVolumeClaim": {"claimName": job.metadata.name}}
        spec["volumes"].append({**source, "name": CHECKPOINT_VOLUME})
        if job.spec.trainer is None:  # the trainer creates the folder itself
            mount = {"name": CHECKPOINT_VOLUME, "mountPath": constants.CHECKPOINT_MOUNT}
            spec["initContainers"] = [folder_container(worker, template.worker, mount, checkpoint_folder(job))]
    if job.spec.trainer is not None and job.spec.checkpoint is not None:
        spec["terminationGracePeriodSeconds"] = _grace_seconds(template)
    if job.spec.image_pull_secrets:
        spec["imagePullSecrets"] = [s.to_dict() for s in job.spec.image_pull_secrets]
    if job.spec.trainer is not None or secret is not None:
        spec["volumes"].append({"name": CONFIG_VOLUME, "configMap": {"name": job.metadata.name}})
    if job.spec.trainer is not None:
        spec["volumes"].append({"name": TMP_VOLUME, "emptyDir": {}})
        spec["automountServiceAccountToken"] = False  # workers need no credentials
        spec["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": NON_ROOT,
            "runAsGroup": NON_ROOT,
            "fsGroup": NON_ROOT,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    return spec


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


def _grace_seconds(template: Template) -> int:
    """Return the seconds in which a terminating pod can write a last checkpoint."""
    given = template.grace_seconds
    return GRACE_SECONDS if given is None else given


def _worker_container(
    job: TrainingJob,
    index: int,
    fixed: list[dict[str, Any]],
    trainer_image: str,
    secret: str | None,
    template: Template,
) -> Manifest:
    """Return the worker container, before the user's template is merged; `fixed` are variables of the rendezvous."""
    spec, fixed = job.spec, list(fixed)
    if spec.trainer is not None:
        fixed.append({"name": constants.ENV_IMAGE, "value": spec.image or trainer_image})
        if uses_gpus(spec) and not spec.is_parameter_server(index):
            gpus = [name for name in spec.workers.resources.limits or {} if is_gpu(name)]
            fixed.append({"name": constants.ENV_DEVICE, "value": next(iter(gpus), constants.DEVICE_CLAIM)})
    if secret is not None:
        source = {"secretKeyRef": {"name": secret, "key": constants.TOKEN_KEY}}
        fixed.append({"name": launcher_protocol.ENV_TOKEN, "valueFrom": source})
    container: Manifest = {
        "name": constants.WORKER_CONTAINER,
        "image": spec.image or trainer_image,
        "env": _environment(fixed, template.env, [e.to_dict() for e in spec.env or ()]),
        "resources": _resources(job, index, template),
        # NCCL and data loaders share memory between processes; the default /dev/shm has 64 MB.
        "volumeMounts": [{"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY_PATH}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if spec.checkpoint is not None and spec.checkpoint.url is None:
        container["volumeMounts"].append({"name": CHECKPOINT_VOLUME, "mountPath": constants.CHECKPOINT_MOUNT})
    if spec.image_pull_policy:
        container["imagePullPolicy"] = spec.image_pull_policy
    if ports := _ports(job, index, template):
        container["ports"] = ports
    if spec.trainer is None:
        container["command"] = list(spec.command or ())
        if spec.args:
            container["args"] = list(spec.args)
    else:
        container["command"] = TRAINER_COMMAND
        container["volumeMounts"] += [CONFIG_MOUNT, {"name": TMP_VOLUME, "mountPath": "/tmp"}]
        container["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    if secret is not None:
        _add_launcher(container)
    return container


def _ports(job: TrainingJob, index: int, template: Template) -> list[Manifest]:
    """Return the ports of a worker but for that of its launcher.

    In the network of a node each port belongs to one pod only. The scheduler keeps pods with the same port on different
    nodes, if the pods name it; the port of the rendezvous is that of worker 0.
    """
    ports = []
    if job.spec.metrics_endpoint is not None:
        ports.append({"name": "metrics", "containerPort": job.spec.metrics_endpoint.port})
    if template.host_network and index == 0:
        ports.append({"name": "rendezvous", "containerPort": constants.RENDEZVOUS_PORT})
    return ports


def _environment(fixed: list[Manifest], template: list[Manifest], spec: list[Manifest]) -> list[Manifest]:
    """Return the variables of a worker: the operator's, then the template's, then those of spec.env.

    A value may refer to a variable before it, for example `$(TRAINYARD_JOB_NAME)`. The operator's cannot be replaced,
    and a variable of spec.env replaces the template's.
    """
    taken = {entry["name"] for entry in fixed}
    given = [entry for entry in spec if entry["name"] not in taken]
    taken |= {entry["name"] for entry in given}
    return [*fixed, *(entry for entry in template if entry["name"] not in taken), *given]


def _resources(job: TrainingJob, index: int, template: Template) -> Manifest:
    """Return the resources of the worker.

    Raises:
        TemplateError: the template has devices, by which the number of ranks would not be set.
    """
    own = _role_spec(job, index).resources.to_dict()
    counted = job.spec.workers.procs_per_worker == "auto" and not job.spec.is_parameter_server(index)
    merged = merge_resources(template, own)
    asked = devices([*merged.get("limits", {}), *merged.get("requests", {})])
    # Other devices beside those that are counted are the user's business: a network card, for example.
    if counted and asked and not counted_devices(own.get("limits") or {}):
        raise TemplateError(
            f"{template.worker_field}.resources: {asked[0]} does not set the number of ranks here; move it to "
            "spec.workers.resources.limits, or set spec.workers.procsPerWorker"
        )
    return own


def _add_launcher(worker: Manifest) -> None:
    """Enable restarts in place: the worker runs under a launcher, and is ready only while its attempt runs.

    The operator notices the end of an attempt by the lost readiness.
    """
    port = {"name": constants.LAUNCHER_PORT_NAME, "containerPort": launcher_protocol.LAUNCHER_PORT}
    worker["ports"] = [*worker.get("ports", ()), port]
    if worker["command"] != TRAINER_COMMAND:  # the trainer has its own launcher
        worker["command"] = ["python3", f"{constants.CONFIG_FOLDER}/{constants.LAUNCHER_FILE}", *worker["command"]]
        worker["volumeMounts"].append(CONFIG_MOUNT)
    worker["readinessProbe"] = {
        "httpGet": {"path": READY_PATH, "port": constants.LAUNCHER_PORT_NAME},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }


def checkpoint_folder(job: TrainingJob) -> str:
    """Return the path of the job's folder on the checkpoint volume, or its URL in an object store."""
    if job.spec.checkpoint is not None and job.spec.checkpoint.url is not None:
        return f"{job.spec.checkpoint.url.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
    return f"{constants.CHECKPOINT_MOUNT}/{job.metadata.name}"


def rendezvous_env(
    job: TrainingJob, attempt: int, index: int, cluster_domain: str = "", *, grace_seconds: int = GRACE_SECONDS
) -> list[dict[str, Any]]:
    """Return the environment variables of the rendezvous, which a user's own program gets too.

    `torchrun` reads the PET_ variables; a program with one process per worker finds its peers by `env://`, which needs
    MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE. With more processes per worker torchrun sets the ranks. A parameter
    server is the last rank and always has one process.

    All pods have the same address, since a program may send the one that it knows to the others. With the domain of the
    cluster it is the name that the kubelet writes to /etc/hosts of worker 0, which so knows itself before its name is
    in the DNS.
    """
    serves = job.spec.is_parameter_server(index)
    procs = 1 if serves else job.spec.procs_per_worker
    domain = f".{cluster_domain}" if cluster_domain else ""
    master = f"{job.pod_name(attempt, 0)}.{job.metadata.name}.{job.metadata.namespace}.svc{domain}"
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
        stored = constants.ENV_CHECKPOINTS if job.spec.checkpoint.url is None else constants.ENV_CHECKPOINT_URL
        values[stored] = checkpoint_folder(job)
        if job.spec.trainer is not None:
            values[constants.ENV_GRACE] = str(grace_seconds)
    if job.spec.trainer is not None:
        values[constants.ENV_CONFIG] = f"{constants.CONFIG_FOLDER}/{constants.CONFIG_FILE}"
    if job.spec.metrics_endpoint is not None:
        values[constants.ENV_METRICS_PORT] = str(job.spec.metrics_endpoint.port)
    return [{"name": name, "value": value} for name, value in values.items()]
