"""An API server in memory behind the operator's own client, and an operator on it, in a loop whose clock jumps.

The server answers so many requests per second, one after the other, and each answer takes a moment more: so a client
that sends too much delays all others. A watch stream delivers every change.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.builders import NOW, TRAINER_IMAGE, make_manifest
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.pod_events import deliver_pod
from trainyard_operator.controller.reconciler import Reconciler
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import KubeApi
from trainyard_operator.kube.backend import KubernetesBackend

Object = dict[str, Any]
WATCH_LAG = 0.02
"""Seconds until a watch stream delivers a change."""


class Response:
    """An answer as the transport returns it."""

    def __init__(self, status: int, body: Object, headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, headers or {}
        self._body = json.dumps(body).encode()

    async def read(self) -> bytes:
        return self._body


class FakeApiServer:
    """Objects by path, a rate limit, and faults."""

    def __init__(self, rate: float = 500.0, latency: float = 0.005) -> None:
        self.rate, self.latency = rate, latency
        self.configuration = SimpleNamespace(host="http://api")
        self.objects: dict[str, Object] = {}
        self.pod_quota: dict[str, int] = {}
        """Most pods of a namespace."""
        self.answers: dict[str, Callable[[], tuple[int, Object, dict[str, str]] | None]] = {}
        """What the server says instead of creating a pod of that job."""
        self.hanging: set[str] = set()
        """Jobs whose pods a webhook never answers for."""
        self.requests: Counter[str] = Counter()
        """POSTs of pods, by the name of their job."""
        self.refused: Counter[str] = Counter()
        self.first_pod: dict[str, float] = {}
        """Time of the first pod of each job."""
        self.last_pod: dict[str, float] = {}
        self.in_flight: Counter[str] = Counter()
        self.most_in_flight = 0
        self.listed = 0
        self.watchers: list[Callable[[Object], None]] = []
        self._version = 1
        self._free_at = 0.0

    async def update_params_for_auth(self, *_: Any) -> None:
        """The server asks for no credentials."""

    async def call_api(self, verb: str, url: str, _headers: Any, body: Any, _request_timeout: float) -> Response:
        path, query = urlsplit(url).path, {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}
        job = (body or {}).get("metadata", {}).get("labels", {}).get("trainyard.dev/job-name", "")
        self.in_flight[job] += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight.total())
        loop = asyncio.get_running_loop()
        try:
            if job in self.hanging and path.endswith("/pods"):
                self.requests[job] += 1
                await asyncio.sleep(_request_timeout)
                raise TimeoutError
            self._free_at = max(self._free_at, loop.time()) + 1 / self.rate
            await asyncio.sleep(self._free_at - loop.time() + self.latency)
            return self._answer(verb, path, query, deepcopy(body), job)
        finally:
            self.in_flight[job] -= 1

    def _answer(self, verb: str, path: str, query: dict[str, str], body: Any, job: str) -> Response:
        if verb == "POST":
            return self._create(path, query, body, job)
        if verb == "GET" and path in self.objects:
            return Response(200, self.objects[path])
        if verb == "GET" and path.rpartition("/")[2] in ("pods", "trainingjobs"):
            return self._list(path, query.get("labelSelector", ""))
        if verb == "PATCH" and "/events/" in path:
            return Response(200, {})
        if verb == "PATCH":
            return self._patch_status(path.removesuffix("/status"), body)
        raise AssertionError(f"{verb} {path}")

    def _create(self, path: str, query: dict[str, str], body: Object, job: str) -> Response:
        namespace, is_pod, is_dry_run = path.split("/")[-2], path.endswith("/pods"), "dryRun" in query
        if path.endswith("/events"):
            return Response(201, body)
        self.requests[job] += is_pod and not is_dry_run
        key = f"{path}/{body['metadata']['name']}"
        if key in self.objects:
            return Response(409, {"reason": "AlreadyExists", "message": f"{key} already exists"})
        if is_pod and job in self.answers and (answer := self.answers[job]()):
            self.refused[job] += not is_dry_run
            return Response(*answer)
        pods = sum(k.startswith(path + "/") for k in self.objects) if namespace in self.pod_quota else 0
        if is_pod and pods >= self.pod_quota.get(namespace, 1_000_000):
            self.refused[job] += not is_dry_run
            return Response(403, {"reason": "Forbidden", "message": "exceeded quota: few"})
        if is_dry_run:
            return Response(201, body)
        stored = self.store(key, body)
        if is_pod:
            self.first_pod.setdefault(job, asyncio.get_running_loop().time())
            self.last_pod[job] = asyncio.get_running_loop().time()
        return Response(201, stored)

    def _list(self, path: str, selector: str) -> Response:
        found = [o for k, o in self.objects.items() if k.rpartition("/")[0] == path and _matches(o, selector)]
        self.listed += len(found)
        return Response(200, {"items": found, "metadata": {"resourceVersion": str(self._version)}})

    def _patch_status(self, path: str, body: Object) -> Response:
        stored = self.objects[path]
        if body["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            return Response(409, {"reason": "Conflict", "message": "the object has been modified"})
        return Response(200, self.store(path, {**stored, "status": _merged(stored.get("status", {}), body["status"])}))

    def store(self, path: str, body: Object) -> Object:
        """Store an object as a user or the operator does, and deliver it to the watch streams."""
        self._version += 1
        metadata = {"uid": f"uid-{self._version}", **body["metadata"], "resourceVersion": str(self._version)}
        stored = self.objects[path] = {**body, "metadata": metadata}
        for watcher in self.watchers:
            asyncio.get_running_loop().call_later(WATCH_LAG, watcher, deepcopy(stored))
        return stored


def _merged(value: Any, patch: Any) -> Any:
    """Return a value after a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    kept = dict(value) if isinstance(value, dict) else {}
    for name, change in patch.items():
        kept[name] = _merged(kept.get(name), change)
    return {name: entry for name, entry in kept.items() if entry is not None}


def _matches(body: Object, selector: str) -> bool:
    labels = body["metadata"].get("labels") or {}
    for part in filter(None, selector.split(",")):
        name, operator, value = (*part.partition("!="),) if "!=" in part else (*part.partition("="),)
        if (labels.get(name) == value) == (operator == "!="):
            return False
    return True


class FakeOperator:
    """The controller with its real client on a fake API server."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.cache: Cache = Cache()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.outcomes: Counter[str] = Counter()
        server.watchers.append(self._on_change)
        backend = KubernetesBackend(KubeApi(server), b"key")  # type: ignore[arg-type]
        self.reconciler = Reconciler(
            self.cache,
            self.queue,
            backend,
            TRAINER_IMAGE,
            clock=lambda: NOW + timedelta(seconds=asyncio.get_running_loop().time()),
            on_reconciled=lambda _, outcome: self.outcomes.update([outcome]),
        )

    def _on_change(self, body: Object) -> None:
        if body["kind"] == "TrainingJob":
            job = TrainingJob.from_dict(body)
            add = self.queue.add_now if self.cache.changes_spec(job) else self.queue.add  # as in kube.watch
            add(self.cache.put_job(job))
        elif body["kind"] == "Pod":
            deliver_pod(self.cache, self.queue, body, gone=False)

    def submit(self, name: str, *, namespace: str = "default", **spec: Any) -> Key:
        """Create a job, as a user does."""
        body = make_manifest(name, namespace=namespace, **spec)
        body["metadata"]["generation"] = 1
        self.server.store(f"/apis/trainyard.dev/v1alpha1/namespaces/{namespace}/trainingjobs/{name}", body)
        return namespace, name

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
