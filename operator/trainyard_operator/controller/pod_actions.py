"""The creation and deletion of a job's pods: what was refused, or is done already, is not asked for again."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.controller.backend import Backend, BackendError, Refused, Stale, Unavailable
from trainyard_operator.controller.backoff import Backoff
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Deletion, Entry
from trainyard_operator.lifecycle.actions import CreatePlaceholders, CreateWorkers, DeleteWorkers
from trainyard_operator.lifecycle.observation import CreationError
from trainyard_operator.manifests.children import build_shared, secret_name
from trainyard_operator.manifests.gangs import build_group, unavailable
from trainyard_operator.manifests.kueue import kueue_queue
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.template import TemplateError

log = logging.getLogger(__name__)

CREATED_AT_ONCE = 1000
"""Pods that one reconciliation creates at most, in about three seconds: so a large group takes turns with other jobs,
and a suspension takes effect soon."""

DELETION_REPEATED_AFTER = 60.0
"""Seconds until a pod is deleted again whose deletion was accepted, but which does not show it."""

CREATED_WAIT = 0.5
"""Seconds until a job is looked at after its pods were created. The responses may say already what they wait for, such
as a scheduling gate, and no event follows then; usually they have started by that time."""

_Version = tuple[str, int, int]
"""What pods are created from: UID and generation of the job, and the attempt."""


class CreationFailed(Exception):
    """Pods could not be created; everything else about the job is reconciled as before.

    Args:
        error: why they could not.
        wait: seconds until the next try.
    """

    def __init__(self, error: BackendError, wait: float) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


class _LazyPods(Sequence[dict[str, Any]]):
    """Manifests of pods, each of which is built when it is sent.

    A thousand at once would keep all other jobs waiting, and be in vain if a quota refuses the first of them.
    """

    def __init__(self, build: Callable[[int], dict[str, Any]], indexes: Sequence[int]) -> None:
        self._build, self._indexes = build, indexes

    def __len__(self) -> int:
        return len(self._indexes)

    def __getitem__(self, position: Any) -> Any:
        return self._build(self._indexes[position])


@dataclass(slots=True)
class PodActions:
    """Creates and deletes pods."""

    cache: Cache
    backend: Backend
    trainer_image: str
    cluster_domain: str = ""
    """DNS domain of the cluster; empty if it is not known."""
    backoff: Backoff[Key] = field(default_factory=Backoff)
    """Holds creations back after a failure, so that other events of a job lead to none."""
    _continued: dict[Key, _Version] = field(default_factory=dict)
    """Groups of which a part was created, and the next one follows at once."""

    def forget(self, key: Key) -> None:
        """Forget a job that is gone."""
        self.backoff.reset(key)
        self._continued.pop(key, None)

    async def create(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> float:
        """Create pods as far as the back-off allows, and remember for the status why one was not created.

        Return the seconds after which the others may be created or, if all exist, the job is to be looked at.

        Raises:
            CreationFailed: a request failed; nothing is created before the back-off has ended.
        """
        # What was refused is not sent again because of an event, but at once when the user has changed the spec.
        version = _version(job, action)
        if wait := self.backoff.remaining(job.key, version):
            return wait
        indexes = action.indexes[:CREATED_AT_ONCE]
        try:
            await self._create_group(job, entry, replace(action, indexes=indexes))
        except (Refused, Unavailable) as error:
            self._continued.pop(job.key, None)
            # One response that is missing means little, but a webhook may fail for hours.
            if isinstance(error, Refused) or self.backoff.has_failed(job.key):
                reason = error.reason if isinstance(error, Refused) else Reason.WAITING_FOR_PODS
                entry.creation_error = CreationError(reason, str(error))
            wait = self.backoff.fail(job.key, version, at_least=error.retry_after)
            raise CreationFailed(error, wait) from error
        entry.creation_error = None
        self.backoff.reset(job.key)
        if len(indexes) == len(action.indexes):
            self._continued.pop(job.key, None)
            return CREATED_WAIT
        self._continued[job.key] = version
        return 0.0

    async def _create_group(self, job: TrainingJob, entry: Entry, action: CreateWorkers) -> None:
        """Create pods of the current attempt, after the API server has confirmed that no other attempt has any.

        The cache may lag behind, so the fence between attempts costs one list.

        Raises:
            Stale: pods of another attempt exist.
            Refused: no pod can be built from the template.
        """
        token = self.backend.launcher_token(job)
        secret = secret_name(job, token) if job.spec.restarts_in_place else None
        build = partial(
            build_pod,
            job,
            action.attempt,
            trainer_image=self.trainer_image,
            cluster_domain=self.cluster_domain,
            secret=secret,
        )
        pods = _LazyPods(build, action.indexes)
        try:
            _ = pods[0], pods[-1]  # a template that is wrong is so for all pods of a role
        except TemplateError as error:
            raise Refused(Reason.INVALID_SPEC, str(error)) from error
        others = await self.backend.list_pods(job, other_than=action.attempt)
        if others:
            for pod in others:
                self.cache.put_pod(pod)
            raise Stale(f"{len(others)} pods of another attempt exist")
        # A moment ago the first part of the same group was created, and these objects before it.
        if self._continued.get(job.key) != _version(job, action):
            await self._check_queue(job)
            await self.backend.create(job, build_shared(job, token))
            await self._create_group_object(job, action.attempt)
        # What the API server has accepted of this attempt shows how many more it will.
        first = 1 if self.backoff.has_failed(job.key) else max(1, entry.count(action.attempt))
        await self.backend.create(job, pods, first=first, on_created=self.cache.put_pod)

    async def _check_queue(self, job: TrainingJob) -> None:
        """Check that the queue of the job exists, before there are pods that would wait in it for ever.

        Raises:
            Refused: the queue, Kueue or a permission is missing; the message says what is needed.
        """
        queue = kueue_queue(job)
        if queue and (problem := await self.backend.find_queue_problem(job, queue)):
            raise Refused(Reason.QUEUE_UNAVAILABLE, problem)

    async def _create_group_object(self, job: TrainingJob, attempt: int) -> None:
        """Create the group object of an attempt before its pods, and delete those of the attempts before it.

        Raises:
            Refused: the gang scheduler, or a permission, is missing; the message says what is needed.
        """
        group = build_group(job, attempt)
        if group is None or job.spec.scheduling is None:
            return
        try:
            if attempt > 1:
                await self.backend.delete_groups(job, group["apiVersion"], other_than=attempt)
            await self.backend.create(job, [group])
        except Refused as error:
            # The name belongs to an object of another owner.
            if error.reason not in (Reason.GANG_UNAVAILABLE, Reason.PODS_REFUSED):
                raise
            raise Refused(Reason.GANG_UNAVAILABLE, unavailable(job.spec.scheduling.gang, str(error))) from error

    async def create_placeholders(self, job: TrainingJob, action: CreatePlaceholders) -> None:
        """Create placeholders. If one is refused, by a quota for example, there is no capacity for it."""
        sized = job.effective_job
        manifests = [
            build_placeholder(sized, action.pod_attempt, index, trainer_image=self.trainer_image)
            for index in action.indexes
        ]
        try:
            await self.backend.create(sized, manifests, on_created=self.cache.put_pod)
        except Refused as error:
            log.info("%s/%s: no capacity for more workers: %s", *job.key, error)

    async def delete(self, job: TrainingJob, entry: Entry, action: DeleteWorkers) -> None:
        """Delete pods, each once: the watch stream may not show for a while that they are being deleted.

        Raises:
            BackendError: a request failed.
        """
        now, due = asyncio.get_running_loop().time(), []
        for worker in action.workers:
            known = entry.deletions.get(worker.uid)
            if known is None or (action.force and not known.force) or now - known.at >= DELETION_REPEATED_AFTER:
                due.append(worker)
        if not due:
            return
        # Recorded before, so that their ends are not taken for something that has happened to them.
        entry.deletions |= {worker.uid: Deletion(now, action.force) for worker in due}
        accepted = False
        try:
            await self.backend.delete_pods(job, due, force=action.force)
            accepted = True
        finally:
            for worker in due if not accepted else ():
                entry.deletions.pop(worker.uid, None)


def _version(job: TrainingJob, action: CreateWorkers) -> _Version:
    return job.metadata.uid, job.metadata.generation, action.attempt
