"""What becomes of a change of a pod: it is cached, and its job is looked at, at once if that may decide something.

While the pods of a group start, or end because the operator has deleted them, hundreds of changes a second decide
nothing before the last one. They only change figures in the status, so they are looked at together.
"""

from collections.abc import Mapping
from typing import Any

from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod, WorkerPod, WorkerState

FIGURES_WAIT = 0.5
"""Seconds between two looks at a job of whose pods only figures have changed."""
SUCCESS_WAIT = 0.1
"""Seconds between two looks at a job of whose pods some have succeeded: that is to be remembered before they are
removed."""


def deliver_pod(cache: Cache, queue: WorkQueue[Key], pod: Pod, *, gone: bool) -> None:
    """Cache a pod that has changed or is gone, and queue its job unless nothing has changed for it.

    Raises:
        KeyError, ValueError: the pod is not as an API server returns pods.
    """
    before, deleted = cache.find_pod(pod)
    metadata = pod["metadata"]
    # The watch delivers what the operator has created itself, and knows from the response: there is nothing to read.
    if not gone and before is not None and _is_version_of(before, metadata):
        return
    key = cache.remove_pod(pod) if gone else cache.put_pod(pod)
    entry = cache.get(key) if key is not None else None
    # The pod is no job's, or its job is not known yet, which is looked at when it is.
    if key is None or entry is None:
        return
    wait = _wait(entry, before, entry.workers.get(metadata["name"]), deleted)
    if wait == 0:
        queue.add(key)
    elif wait is not None:
        queue.add_soon(key, wait)


def _wait(entry: Entry, before: WorkerPod | None, after: WorkerPod | None, deleted: bool) -> float | None:
    """Return the seconds between two looks at a job because of such a change; 0: at once; None: no look.

    Args:
        entry: what is cached of the job, after the change.
        before: the pod as it was cached; None if it was not.
        after: the pod as it is cached; None if it is gone.
        deleted: whether the operator has deleted the pod.
    """
    # Nothing has changed that a plan depends on.
    if before == after and (before is None or after is None or before.address == after.address):
        return None
    # A pod is gone: that decides something if the operator has not deleted it, or if it was the last of its group.
    if after is None:
        assert before is not None
        return FIGURES_WAIT if deleted and entry.count(before.attempt) else 0
    # Only the end of a pod matters that the operator has deleted.
    if deleted:
        return FIGURES_WAIT
    # A placeholder has found capacity, or has not.
    if after.is_placeholder or not _is_sound(after):
        return 0
    # A pod that was ready is not any more: its ranks may have failed.
    if before is not None and before.ready and not after.ready and after.state is not WorkerState.SUCCEEDED:
        return 0
    waiting = entry.count(after.attempt, WorkerState.PENDING)
    # A worker has succeeded: that may be the success of the job.
    if after.state is WorkerState.SUCCEEDED:
        left = waiting + entry.count(after.attempt, WorkerState.RUNNING)
        return SUCCESS_WAIT if left and after.index != 0 else 0
    # The last worker of the group runs.
    started = after.state is WorkerState.RUNNING and (before is None or before.state is WorkerState.PENDING)
    return 0 if started and not waiting else FIGURES_WAIT


def _is_version_of(known: WorkerPod, metadata: Mapping[str, Any]) -> bool:
    """Return whether a pod is cached in this version or a newer one."""
    return known.uid == metadata["uid"] and known.resource_version >= int(metadata["resourceVersion"])


def _is_sound(pod: WorkerPod) -> bool:
    """Return whether a pod has not failed, and nothing ends it or keeps it from starting for ever."""
    stuck = pod.blocker is not None and bool(pod.blocker.permanent)
    return not (pod.state is WorkerState.FAILED or pod.terminating or pod.disrupted or pod.rejected or stuck)
