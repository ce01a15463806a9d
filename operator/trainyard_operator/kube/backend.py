"""The Kubernetes backend: children of jobs as objects of a cluster."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from yarl import URL

from trainyard.protocol import constants, launcher_protocol
from trainyard.protocol.launcher_state import PodState
from trainyard.resource.job import Metadata, TrainingJob
from trainyard.resource.status import Reason, TrainingJobStatus
from trainyard_operator.controller import launcher_client
from trainyard_operator.controller.backend import BackendError, Gone, OnCreated, Refused, Stale, Unavailable, ignore
from trainyard_operator.controller.http import pod_url
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.kube import queues
from trainyard_operator.kube.api import MERGE_PATCH, PER_JOB, ApiError, KubeApi
from trainyard_operator.kube.events import EventRecorder
from trainyard_operator.kube.merge_patch import merge_patch
from trainyard_operator.kube.paths import core_path, jobs_path
from trainyard_operator.kube.slow_start import send_all
from trainyard_operator.lifecycle.minimal_status import minimal_status
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, job_name_of, owner_uid
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.manifests.gangs.scheduler import GROUP_KIND
from trainyard_operator.manifests.limit_range import added_limit_problem
from trainyard_operator.pod_input.text import clean_text

log = logging.getLogger(__name__)

_STATUS_REFUSALS = (400, 403, 410, 413, 422)
"""HTTP codes of a status that cannot be stored as it is: repeating the request would not help."""

_PLURALS = {
    "Pod": "pods",
    "Service": "services",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Secret": "secrets",
    "ControllerRevision": "controllerrevisions",
    GROUP_KIND: "podgroups",
}

_STRICT = {"fieldValidation": "Strict"}
"""Makes the API server refuse unknown fields, which it would otherwise drop: a template may have a typo."""


def _collection(api_version: str, kind: str, namespace: str) -> str:
    """Return the path of the children of a kind in a namespace."""
    if api_version == "v1":
        return core_path(_PLURALS[kind], namespace)
    return f"/apis/{api_version}/namespaces/{namespace}/{_PLURALS[kind]}"


class KubernetesBackend:
    """Keeps the children of jobs in a cluster (see `trainyard_operator.controller.backend.Backend`)."""

    def __init__(self, api: KubeApi, key: bytes) -> None:
        """Create a backend; `key` is the operator's secret, from which the tokens of all jobs are derived."""
        self._api = api
        self._key = key
        self._events = EventRecorder(api)

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        """Merge the changes into the status subresource, with the resource version as a precondition.

        Fields that another version of the operator has written stay. If the API server refuses the status, a minimal
        one is stored, which says so.
        """
        stored = job.status.to_dict()
        try:
            body = await self._patch_status(job.metadata, merge_patch(stored, status.to_dict()))
        except ApiError as error:
            if error.code not in _STATUS_REFUSALS:
                raise Gone(str(error)) if error.code == 404 else _translate(error) from error
            body = await self._write_minimal_status(job, status, error)
        return TrainingJob.from_dict(body)

    async def _write_minimal_status(
        self, job: TrainingJob, status: TrainingJobStatus, refusal: ApiError
    ) -> dict[str, Any]:
        """Store the decisions of a status that was refused.

        Raises:
            Refused: the API server refuses this one, too, so that only an event can say so.
        """
        log.error("%s/%s: the API server refuses the status: %s", *job.key, refusal)
        minimal = minimal_status(job.status, status, str(refusal))
        try:
            return await self._patch_status(job.metadata, merge_patch(job.status.to_dict(), minimal.to_dict()))
        except ApiError as error:
            if error.code not in _STATUS_REFUSALS:
                raise Gone(str(error)) if error.code == 404 else _translate(error) from error
            message = clean_text(f"the API server refuses every status of the job: {error}", 1024)
            await self.record_event(job, Event("Warning", Reason.STATUS_REFUSED, message))
            raise Refused(Reason.STATUS_REFUSED, message) from error

    async def report_unreadable(self, job: UnreadableJob, patch: Mapping[str, Any]) -> bool:
        """Merge a patch into the status of a job, with the resource version as a precondition."""
        try:
            await self._patch_status(job.metadata, patch)
        except ApiError as error:
            if error.code in _STATUS_REFUSALS:
                log.warning("%s/%s: the API server refuses every status of the job: %s", *job.key, error)
                return False
            raise Gone(str(error)) if error.code == 404 else _translate(error) from error
        return True

    async def _patch_status(self, metadata: Metadata, patch: Mapping[str, Any]) -> dict[str, Any]:
        path = f"{jobs_path(metadata.namespace)}/{metadata.name}/status"
        identity = {"uid": metadata.uid, "resourceVersion": metadata.resource_version}
        return await self._api.request("PATCH", path, {"metadata": identity, "status": patch}, content_type=MERGE_PATCH)

    async def dry_run(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        """Send a pod as a dry run with strict field validation."""
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        try:
            admitted = await self._api.request(
                "POST", core_path("pods", job.metadata.namespace), pod, query=query, flow=_flow(job)
            )
        except ApiError as error:
            if _is_malformed(error):
                return str(error)
            # Nothing was learnt about the pod: ask again.
            if error.code in (0, 408, 429, 503):
                raise _translate(error) from error
            # A quota, a policy, a webhook without support for dry runs: the creation shows what it means.
            log.info("%s/%s: the dry run of a pod shows nothing: %s", *job.key, error)
            return None
        return added_limit_problem(job, pod, admitted)

    async def store_revision(self, job: TrainingJob, revision: dict[str, Any]) -> dict[str, Any]:
        """Create a ControllerRevision, whose content the API server never changes."""
        return await self._create_one(job, revision)

    async def load_revision(self, job: TrainingJob, name: str) -> dict[str, Any] | None:
        """Read a ControllerRevision; one of another owner does not count."""
        try:
            found = await self._api.request(
                "GET", f"{_collection('apps/v1', 'ControllerRevision', job.metadata.namespace)}/{name}"
            )
        except ApiError as error:
            if error.code == 404:
                return None
            raise _translate(error) from error
        return found if owner_uid(found) == job.metadata.uid else None

    async def list_pods(self, job: TrainingJob, *, other_than: int | None = None) -> list[Pod]:
        """Return pods as of now: without a resource version the API server reads from etcd."""
        try:
            pods, _ = await self._api.list(core_path("pods", job.metadata.namespace), _selector(job, other_than))
        except ApiError as error:
            raise _translate(error) from error
        return [pod for pod in pods if owner_uid(pod) == job.metadata.uid and job_name_of(pod)]

    async def create(
        self,
        job: TrainingJob,
        manifests: Sequence[dict[str, Any]],
        *,
        first: int = 1,
        on_created: OnCreated = ignore,
    ) -> None:
        """Create pods with slow start, and the few objects of another kind at once."""
        are_pods = any(manifest["kind"] == "Pod" for manifest in manifests)
        first = first if are_pods else len(manifests)

        async def create_one(manifest: dict[str, Any]) -> None:
            on_created(await self._create_one(job, manifest))

        await send_all(create_one, manifests, first=first, most=PER_JOB)

    async def _create_one(self, job: TrainingJob, manifest: dict[str, Any]) -> dict[str, Any]:
        kind, metadata = manifest["kind"], manifest["metadata"]
        path = _collection(manifest["apiVersion"], kind, metadata["namespace"])
        try:
            return await self._api.request("POST", path, manifest, query=_STRICT, flow=_flow(job))
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

    async def delete_groups(self, job: TrainingJob, api_version: str, *, other_than: int | None = None) -> None:
        """Delete group objects by their labels, in one request."""
        query = {"labelSelector": _selector(job, other_than)}
        try:
            path = _collection(api_version, GROUP_KIND, job.metadata.namespace)
            await self._api.request("DELETE", path, query=query, flow=_flow(job))
        except ApiError as error:
            if error.code != 404:  # the API server does not serve the kind, so there is none
                raise _translate(error) from error

    async def find_queue_problem(self, job: TrainingJob, queue: str) -> str | None:
        """Read the LocalQueue (`queues.find_queue_problem`)."""
        try:
            return await queues.find_queue_problem(self._api, job.metadata.namespace, queue)
        except ApiError as error:
            raise _translate(error) from error

    async def delete_pods(self, job: TrainingJob, workers: Sequence[WorkerPod], *, force: bool = False) -> None:
        """Delete pods, each with its UID as a precondition, so that a newer pod of the same name is kept.

        With `force` the pod leaves the API at once, whatever its kubelet does; docs/failures.md describes the risk.
        """
        refusals = await send_all(partial(self._delete_one, job, force), workers, first=PER_JOB, most=PER_JOB)
        # A pod that is not deleted does not keep the others.
        if refusal := next(filter(None, refusals), None):
            raise refusal

    async def _delete_one(self, job: TrainingJob, force: bool, worker: WorkerPod) -> BackendError | None:
        """Delete a pod, and return why not if the API server refuses that."""
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": worker.uid}}
        if force:
            body["gracePeriodSeconds"] = 0
        path = f"{core_path('pods', job.metadata.namespace)}/{worker.name}"
        try:
            await self._api.request("DELETE", path, body, flow=_flow(job))
        except ApiError as error:
            if error.code == 404:
                return None
            translated = _translate(error)
            # Another pod has the name, or the request met another one, or a webhook refuses with this code.
            if isinstance(translated, Stale):
                return translated if await self._exists(path, worker.uid, _flow(job)) else None
            if not isinstance(translated, Refused):
                raise translated from error
            return translated
        return None

    async def _exists(self, path: str, uid: str, flow: str) -> bool:
        """Return whether there is an object at a path, and it has this UID."""
        try:
            found = await self._api.request("GET", path, flow=flow)
        except ApiError as error:
            if error.code == 404:
                return False
            raise _translate(error) from error
        return bool(found["metadata"]["uid"] == uid)

    async def delete_job(self, job: TrainingJob) -> None:
        """Delete the job as kubectl does: the garbage collector then deletes its children."""
        namespace, name = job.key
        preconditions = {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version}
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": preconditions,
            "propagationPolicy": "Background",
        }
        try:
            await self._api.request("DELETE", f"{jobs_path(namespace)}/{name}", body)
        except ApiError as error:
            raise Gone(str(error)) if error.code == 404 else _translate(error) from error

    async def record_event(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        """Record an event, or count one that occurs again (`EventRecorder`)."""
        await self._events.record(job, event)

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


def _selector(job: TrainingJob, other_than: int | None) -> str:
    """Return the selector of a job's children; with an attempt, of those of other attempts alone."""
    selector = f"{constants.LABEL_JOB}={job.metadata.name}"
    return selector if other_than is None else f"{selector},{constants.LABEL_ATTEMPT}!={other_than}"


def _flow(job: TrainingJob) -> str:
    """Return the name under which requests of a job share slots with those of other jobs."""
    return "/".join(job.key)


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
        return Unavailable(str(error), error.retry_after)
    return Refused(Reason.PODS_REFUSED, str(error))


def _is_malformed(error: ApiError) -> bool:
    """Return whether a refusal says that an object is malformed: it can only be created after a change of it.

    A webhook or a policy may refuse with any code. It says so in the message, and may be changed by an administrator.
    """
    policy = ("admission webhook", "is forbidden", "denied the request", "ValidatingAdmissionPolicy")
    if any(words in str(error) for words in policy):
        return False
    return error.code == 400 or (error.code == 422 and error.reason in ("Invalid", ""))


def _refusal(error: ApiError, kind: str, name: str) -> BackendError:
    """Return the error that a failed creation stands for."""
    # A webhook may refuse with any code and any message, so both are read together with what the error is about.
    if error.code == 404 and error.details.get("kind") == "namespaces":
        return Gone(f"the namespace of {kind} {name} does not exist any more")
    if error.code == 403 and error.has_cause("NamespaceTerminating"):
        return Gone(str(error))
    translated = _translate(error)
    if isinstance(translated, Refused) and kind == GROUP_KIND:
        return Refused(Reason.GANG_UNAVAILABLE, f"the API server refuses {kind} {name}: {error}")
    if isinstance(translated, Refused):
        fix = "correct what the message names: a quota, a pod security standard, or a field of spec.workers.template"
        return Refused(translated.reason, f"the API server refuses {kind} {name}: {error}; {fix}")
    return Unavailable(f"{kind} {name} cannot be created: {error}", error.retry_after)
