"""The Kubernetes backend: children of jobs as objects of a cluster."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from yarl import URL

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard.time import format_time, utc_now
from trainyard_operator.controller import launcher_client
from trainyard_operator.controller.backend import BackendError, Gone, Refused, Stale, Unavailable
from trainyard_operator.controller.http import pod_url
from trainyard_operator.kube.api import MERGE_PATCH, ApiError, KubeApi
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, job_name_of, owner_uid
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
    """Return the path of the TrainingJobs of a namespace, or of all namespaces."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{constants.API_VERSION}{within}/{constants.PLURAL}"


def core_path(plural: str, namespace: str | None = None) -> str:
    """Return the path of a core collection of a namespace, or of all namespaces."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/{plural}"


class KubernetesBackend:
    """Keeps the children of jobs in a cluster (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, api: KubeApi, key: bytes) -> None:
        """Create a backend; `key` is the operator's secret, from which the tokens of all jobs are derived."""
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
        """Return the job's pods as of now: without a resource version the API server reads from etcd."""
        namespace, name = job.key
        try:
            pods, _ = await self._api.list(core_path("pods", namespace), f"{constants.LABEL_JOB}={name}")
        except ApiError as error:
            raise _translate(error) from error
        return [pod for pod in pods if owner_uid(pod) == job.metadata.uid and job_name_of(pod)]

    async def create(self, job: TrainingJob, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Create children in parallel; the API client limits the requests in flight."""
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
            return manifest  # its name is derived from its content, and the operator may not read Secrets
        return await self._adopt(job, manifest, f"{path}/{metadata['name']}")

    async def _adopt(self, job: TrainingJob, manifest: dict[str, Any], path: str) -> dict[str, Any]:
        """Return the object that already has the name of a child, if it belongs to this job.

        That is so after a request was repeated, and for the claim that an earlier job of the same name has left.

        Raises:
            Stale: the object was deleted meanwhile.
            Unavailable: the object belongs to a deleted job of the same name, and is being deleted.
            Refused: the object belongs to another owner.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            found = await self._api.request("GET", path)
            owner = owner_uid(found)
            if owner == job.metadata.uid or _is_retained(found, manifest):
                if kind == "ConfigMap" and found.get("data") != manifest["data"]:
                    found = await self._api.request("PATCH", path, {"data": manifest["data"]}, content_type=MERGE_PATCH)
                return found
        except ApiError as error:
            raise (Stale(f"{kind} {name} was deleted meanwhile") if error.code == 404 else _translate(error)) from error
        if found["metadata"].get("deletionTimestamp") and owner is not None:
            raise Unavailable(f"{kind} {name} of a deleted job of the same name is still being deleted")
        fix = "delete it, or give the job another name"
        raise Refused(Reason.NAME_TAKEN, f"{kind} {name} exists already and is not this job's; {fix}")

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        """Delete pods, each with its UID as a precondition, so that a newer pod of the same name is kept.

        With `force` the pod leaves the API at once, whatever its kubelet does; docs/failures.md describes the risk.
        """
        await asyncio.gather(*(self._delete_one(job, worker, force) for worker in workers))

    async def _delete_one(self, job: TrainingJob, worker: WorkerPod, force: bool) -> None:
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": worker.uid}}
        if force:
            body["gracePeriodSeconds"] = 0
        try:
            await self._api.request("DELETE", f"{core_path('pods', job.metadata.namespace)}/{worker.name}", body)
        except ApiError as error:
            if error.code not in (404, 409):  # the pod is gone, or another one has its name
                raise _translate(error) from error

    async def record_event(self, job: TrainingJob, event: Event) -> None:
        """Create an event. An event that cannot be stored is only logged, since the job does not depend on it."""
        namespace, name = job.key
        now = utc_now()
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
            "firstTimestamp": format_time(now),
            "lastTimestamp": format_time(now),
            "count": 1,
        }
        try:
            await self._api.request("POST", core_path("events", namespace), body)
        except ApiError as error:
            log.warning("%s/%s: event %s was not stored: %s", namespace, name, event.reason, error)

    def launcher_token(self, job: TrainingJob) -> str:
        """Return the job's token (`launcher_client.job_token`)."""
        return launcher_client.job_token(self._key, job)

    async def get_launcher_state(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Query the launcher at the pod's address."""
        return await launcher_client.get_state(_launcher_url(worker), self.launcher_token(job), job)

    async def start_attempt(self, job: TrainingJob, worker: WorkerPod, attempt: int) -> PodState | None:
        """Send a restart request to the launcher at the pod's address."""
        return await launcher_client.start_attempt(_launcher_url(worker), self.launcher_token(job), job, attempt)

    async def release(self, job: TrainingJob, worker: WorkerPod) -> PodState | None:
        """Send a request to exit to the launcher at the pod's address."""
        return await launcher_client.release(_launcher_url(worker), self.launcher_token(job), job)

    def metrics_url(self, job: TrainingJob, worker: WorkerPod) -> URL | None:
        """Return the URL of the page that the spec names, at the pod's address. Annotations of a pod do not count."""
        page = job.spec.metrics_endpoint
        return pod_url(worker.address, page.port, page.path) if page is not None else None


def _launcher_url(worker: WorkerPod) -> URL | None:
    return pod_url(worker.address, launcher_protocol.LAUNCHER_PORT, "/")


def _is_retained(found: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Return whether an object is the claim that an earlier job of the same name retained for this one."""
    labels = found["metadata"].get("labels") or {}
    retained = manifest["kind"] == "PersistentVolumeClaim" and "ownerReferences" not in manifest["metadata"]
    same = labels.get(constants.LABEL_JOB) == manifest["metadata"]["labels"][constants.LABEL_JOB]
    return retained and same and owner_uid(found) is None and not found["metadata"].get("deletionTimestamp")


def _translate(error: ApiError) -> BackendError:
    """Return the error that a failed request stands for."""
    if error.code == 409:
        return Stale(str(error))
    if error.code in (0, 408, 429) or error.code >= 500:
        return Unavailable(str(error))
    return Refused(Reason.PODS_REFUSED, str(error))


def _refusal(error: ApiError, kind: str, name: str) -> BackendError:
    """Return the error that a failed creation stands for."""
    if error.code == 404:
        return Gone(f"the namespace of {kind} {name} does not exist any more")
    if error.code == 403 and "being terminated" in str(error):
        return Gone(str(error))
    translated = _translate(error)
    if isinstance(translated, Refused):
        fix = "correct what the message names: a quota, a pod security standard, or a field of spec.workers.template"
        return Refused(translated.reason, f"the API server refuses {kind} {name}: {error}; {fix}")
    return translated
