"""The world as a Kubernetes cluster."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.controller import launcher_client
from trainyard_operator.controller.backend import BackendError, Gone, Refused, Stale, Unavailable
from trainyard_operator.controller.cache import owner_uid
from trainyard_operator.kube.api import MERGE_PATCH, ApiError, KubeApi
from trainyard_operator.lifecycle.observation import Pod, Worker, job_name_of
from trainyard_operator.lifecycle.status_builder import Event

log = logging.getLogger(__name__)

_PLURALS = {
    "Pod": "pods",
    "Service": "services",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Secret": "secrets",
}


def jobs_path(namespace: str | None = None) -> str:
    """Path of the TrainingJobs of a namespace, or of all."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{constants.API_VERSION}{within}/{constants.PLURAL}"


def core_path(plural: str, namespace: str | None = None) -> str:
    """Path of a core collection of a namespace, or of all."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/{plural}"


class KubernetesBackend:
    """Children as objects of a cluster (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, api: KubeApi, key: bytes) -> None:
        """`key`: secret; the tokens of all jobs follow from it."""
        self._api = api
        self._key = key

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Replace the status subresource, with resource version and UID as preconditions."""
        namespace, name = job.key
        identity = {"name": name, "namespace": namespace, "uid": job.metadata.uid}
        body = {
            "apiVersion": job.api_version,
            "kind": job.kind,
            "metadata": {**identity, "resourceVersion": job.metadata.resource_version},
            "spec": job.spec.to_dict(),
            "status": status.to_dict(),
        }
        path = f"{jobs_path(namespace)}/{name}/status"
        try:
            body = await self._api.request("PUT", path, body)
        except ApiError as error:
            raise Gone(str(error)) if error.code == 404 else _translate(error) from error
        return TrainingJob.from_dict(body)

    async def list_pods(self, job: TrainingJob) -> list[Pod]:
        """The job's pods, read from etcd (no resource version: the most recent data)."""
        namespace, name = job.key
        try:
            pods, _ = await self._api.list(core_path("pods", namespace), f"{constants.LABEL_JOB}={name}")
        except ApiError as error:
            raise _translate(error) from error
        return [pod for pod in pods if owner_uid(pod) == job.metadata.uid and job_name_of(pod)]

    async def create(self, job: TrainingJob, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Create all at once; the API client bounds how many requests are in flight."""
        results = await asyncio.gather(*(self._create_one(job, m) for m in manifests), return_exceptions=True)
        failures = [r for r in results if isinstance(r, BaseException)]
        for failure in failures:
            if not isinstance(failure, BackendError):
                raise failure
        if failures:
            raise failures[0]
        return [r for r in results if not isinstance(r, BaseException)]

    async def _create_one(self, job: TrainingJob, manifest: dict[str, Any]) -> dict[str, Any]:
        kind, metadata = manifest["kind"], manifest["metadata"]
        path = core_path(_PLURALS[kind], metadata["namespace"])
        try:
            return await self._api.request("POST", path, manifest)
        except ApiError as error:
            if error.code != 409:
                raise _refusal(error, kind, metadata["name"]) from error
        if kind == "Secret":
            return manifest  # its name follows from what is in it, and the operator may not read Secrets
        return await self._adopt(job, manifest, f"{path}/{metadata['name']}")

    async def _adopt(self, job: TrainingJob, manifest: dict[str, Any], path: str) -> dict[str, Any]:
        """The name is in use: fine if the object is this job's own (a request was repeated), else an error."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            found = await self._api.request("GET", path)
            owner = owner_uid(found)
            if owner == job.metadata.uid or _is_retained(found, manifest):
                if kind == "ConfigMap" and found.get("data") != manifest["data"]:
                    found = await self._api.request("PATCH", path, {"data": manifest["data"]}, content_type=MERGE_PATCH)
                return found
        except ApiError as error:
            raise (Stale(f"{kind} {name} has just gone") if error.code == 404 else _translate(error)) from error
        if found["metadata"].get("deletionTimestamp") and owner is not None:
            raise Unavailable(f"{kind} {name} of a deleted job of the same name is still going")
        fix = "delete it, or give the job another name"
        raise Refused(Reason.NAME_TAKEN, f"{kind} {name} exists already and is not this job's; {fix}")

    async def delete_pods(self, job: TrainingJob, workers: Sequence[Worker], *, force: bool = False) -> None:
        """Delete pods, each under its UID, so that a namesake made since is left alone.

        By force: the pod vanishes from the API at once, whatever its kubelet does. See docs/failures.md for the risk.
        """
        await asyncio.gather(*(self._delete_one(job, worker, force) for worker in workers))

    async def _delete_one(self, job: TrainingJob, worker: Worker, force: bool) -> None:
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": worker.uid}}
        if force:
            body["gracePeriodSeconds"] = 0
        try:
            await self._api.request("DELETE", f"{core_path('pods', job.metadata.namespace)}/{worker.name}", body)
        except ApiError as error:
            if error.code not in (404, 409):  # gone, or another pod of that name: both are what was wanted
                raise _translate(error) from error

    async def tell(self, job: TrainingJob, event: Event) -> None:
        """Create an event. Events are for people: losing one must not stop the job, so it is only logged."""
        namespace, name = job.key
        now = datetime.now(UTC)
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{now.timestamp():.6f}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": name,
                "namespace": namespace,
                "uid": job.metadata.uid,
                "resourceVersion": job.metadata.resource_version,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": "trainyard-operator"},
            "reportingComponent": "trainyard.dev/operator",
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
        try:
            await self._api.request("POST", core_path("events", namespace), body)
        except ApiError as error:
            log.warning("%s/%s: the event %s was not stored: %s", namespace, name, event.reason, error)

    def token(self, job: TrainingJob) -> str:
        """See `launcher_client.job_token`."""
        return launcher_client.job_token(self._key, job)

    async def ask(self, job: TrainingJob, pods: Sequence[Pod]) -> list[PodState | None]:
        """Call the launcher's port at the pods' addresses."""
        return await launcher_client.ask([_url(pod, launcher_protocol.LAUNCHER_PORT) for pod in pods], self.token(job))

    async def order(self, job: TrainingJob, pods: Sequence[Pod], attempt: int | None) -> list[PodState | None]:
        """Call the launcher's port at the pods' addresses."""
        return await launcher_client.order(
            [_url(pod, launcher_protocol.LAUNCHER_PORT) for pod in pods], self.token(job), attempt
        )

    def metrics_url(self, pod: Pod) -> str | None:
        """The page that the pod's annotations name, at its address."""
        about = pod["metadata"].get("annotations") or {}
        if constants.ANNOTATION_PORT not in about:
            return None
        url = _url(pod, int(about[constants.ANNOTATION_PORT]))
        return url and f"{url}{about[constants.ANNOTATION_PATH]}"


def _url(pod: Pod, port: int) -> str | None:
    address = (pod.get("status") or {}).get("podIP")
    host = f"[{address}]" if address and ":" in address else address
    return f"http://{host}:{port}" if address else None


def _is_retained(found: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether this is the claim that an earlier job of the same name left for this one."""
    labels = found["metadata"].get("labels") or {}
    retained = manifest["kind"] == "PersistentVolumeClaim" and "ownerReferences" not in manifest["metadata"]
    same = labels.get(constants.LABEL_JOB) == manifest["metadata"]["labels"][constants.LABEL_JOB]
    return retained and same and owner_uid(found) is None and not found["metadata"].get("deletionTimestamp")


def _translate(error: ApiError) -> BackendError:
    """What an answer means, wherever it comes from."""
    if error.code == 409:
        return Stale(str(error))
    if error.code in (0, 408, 429) or error.code >= 500:
        return Unavailable(str(error))
    return Refused(Reason.PODS_REFUSED, str(error))


def _refusal(error: ApiError, kind: str, name: str) -> BackendError:
    """What an answer to a creation means."""
    if error.code == 404:
        return Gone(f"namespace of {kind} {name} is gone")
    if error.code == 403 and "being terminated" in str(error):
        return Gone(str(error))
    translated = _translate(error)
    if isinstance(translated, Refused):
        fix = "change what it names: a quota, a security profile, or the fields of spec.workers.template"
        return Refused(translated.reason, f"the API server refuses {kind} {name}: {error}; {fix}")
    return translated
