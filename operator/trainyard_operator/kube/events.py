"""Events of jobs, aggregated as by client-go: what occurs again is counted, and what varies too often is combined."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from trainyard.protocol import constants
from trainyard.resource.job import TrainingJob
from trainyard.time import format_time, utc_now
from trainyard_operator.controller.unreadable import UnreadableJob
from trainyard_operator.kube.api import MERGE_PATCH, ApiError, KubeApi
from trainyard_operator.kube.paths import core_path
from trainyard_operator.lifecycle.status_builder import MAX_EVENT_MESSAGE, Event
from trainyard_operator.pod_input.text import clean_text

log = logging.getLogger(__name__)

SIMILAR = 10
"""Number of events that differ in their message alone, after which further ones are combined."""
INTERVAL = timedelta(minutes=10)
"""Time without such an event after which their count begins again."""
_REMEMBERED = 4096
"""Number of events, and of kinds of events, that are remembered."""

V = TypeVar("V")


@dataclass(slots=True)
class _Stored:
    """An event that the API server has stored."""

    name: str
    first: datetime
    count: int


@dataclass(slots=True)
class _Similar:
    """Events of one job that differ in their message alone."""

    last: datetime
    messages: set[str] = field(default_factory=set)


class EventRecorder:
    """Creates events, and counts those that occur again. Each job's events come one after the other.

    What was recorded is remembered in this process alone: after a restart of the operator an event is created again.
    """

    def __init__(self, api: KubeApi, now: Callable[[], datetime] = utc_now) -> None:
        self._api = api
        self._now = now
        self._stored: OrderedDict[tuple[str, ...], _Stored] = OrderedDict()
        self._similar: OrderedDict[tuple[str, ...], _Similar] = OrderedDict()

    async def record(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        """Record an event. One that cannot be stored is only logged, since the job does not depend on it."""
        namespace, name = job.key
        try:
            await self._record(job, event)
        except ApiError as error:
            log.warning("%s/%s: event %s was not stored: %s", namespace, name, event.reason, error)

    async def _record(self, job: TrainingJob | UnreadableJob, event: Event) -> None:
        now, message = self._now(), clean_text(event.message, MAX_EVENT_MESSAGE)
        kind = (job.metadata.uid, event.type, event.reason)
        key: tuple[str, ...] = (*kind, message)
        if self._is_one_of_many(kind, message, now):
            key, message = kind, clean_text(f"(combined from similar events): {message}", MAX_EVENT_MESSAGE)
        stored = self._stored.get(key)
        if stored is not None and await self._count(job, stored, message, now):
            return
        # It is new, or has expired meanwhile.
        stored = _Stored(f"{job.metadata.name}.{now.timestamp():.6f}", now, 1)
        path = core_path("events", job.metadata.namespace)
        await self._api.request("POST", path, _body(job, event, message, stored))
        _remember(self._stored, key, stored)

    async def _count(self, job: TrainingJob | UnreadableJob, stored: _Stored, message: str, now: datetime) -> bool:
        """Count an event that occurs again; return False if it is not stored any more."""
        path = f"{core_path('events', job.metadata.namespace)}/{stored.name}"
        patch = {"count": stored.count + 1, "lastTimestamp": format_time(now), "message": message}
        try:
            await self._api.request("PATCH", path, patch, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        stored.count += 1
        return True

    def _is_one_of_many(self, kind: tuple[str, ...], message: str, now: datetime) -> bool:
        """Note an event, and return whether there were too many that differ in their message alone."""
        similar = self._similar.get(kind)
        if similar is None or now - similar.last > INTERVAL:
            similar = _Similar(now)
        _remember(self._similar, kind, similar)
        similar.last = now
        if len(similar.messages) < SIMILAR:
            similar.messages.add(message)
        return message not in similar.messages


def _remember(table: OrderedDict[tuple[str, ...], V], key: tuple[str, ...], value: V) -> None:
    """Put a value into a table, from which the one that was put there longest ago is removed if it is full."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _REMEMBERED:
        table.popitem(last=False)


def _body(job: TrainingJob | UnreadableJob, event: Event, message: str, stored: _Stored) -> dict[str, Any]:
    namespace, name = job.key
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": stored.name, "namespace": namespace},
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
        "message": message,
        "source": {"component": "trainyard-operator"},
        "reportingComponent": constants.CONTROLLER,
        "firstTimestamp": format_time(stored.first),
        "lastTimestamp": format_time(stored.first),
        "count": stored.count,
    }
