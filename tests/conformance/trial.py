"""Runs cases side by side: each in a namespace of its own, all of them against one operator and one API server.

Pods and jobs of all namespaces come by two watches, so that a hundred cases that wait cost the API server nothing.
"""

import asyncio
import inspect
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.model import Backend, Case, Identity, Job, Mapping, Object
from tests.support.background import background
from tests.support.kube import MERGE, Api

Listener = Callable[[str, Object], None]


class View:
    """The newest state of all pods and jobs, and the history of both, by namespace."""

    def __init__(self, api: Api, mapping: Mapping) -> None:
        self._api, self._paths = api, ("/api/v1/pods", f"{mapping.api}/{mapping.plural}")
        self.pods: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self.jobs: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self.history: defaultdict[str, list[tuple[str, Object]]] = defaultdict(list)
        self.job_history: defaultdict[str, list[Object]] = defaultdict(list)
        self.listeners: dict[str, Listener] = {}
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def change(self, namespace: str) -> asyncio.Event:
        """Return what will be set by the next change in a namespace."""
        return self._changed[namespace]

    async def _follow(self, path: str, version: str, objects: defaultdict[str, dict[str, Object]]) -> None:
        async for kind, body in self._api.watch(path, version):
            namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
            if kind == "DELETED":
                objects[namespace].pop(name, None)
            else:
                objects[namespace][name] = body
            if objects is self.jobs:
                self.job_history[namespace].append(body)
            else:
                self.history[namespace].append((kind, body))
                if listener := self.listeners.get(namespace):
                    listener(kind, body)
            self._changed.pop(namespace, asyncio.Event()).set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow everything that happens from now on."""
        versions = [(await self._api.get(path, limit="1"))["metadata"]["resourceVersion"] for path in self._paths]
        objects = (self.pods, self.jobs)
        async with background(*(self._follow(*part) for part in zip(self._paths, versions, objects, strict=True))):
            yield


@dataclass
class Trial:
    """One case while it runs."""

    case: Case
    api: Api
    mapping: Mapping
    view: View
    backend: Backend
    namespace: str
    starts: bool
    terminates: bool
    special: dict[Identity, Object] = field(default_factory=dict)
    """First statuses of pods that do not just run."""

    def jobs(self, name: str = "", subresource: str = "") -> str:
        """Return the path of the jobs, of one of them, or of a part of it."""
        base = f"{self.mapping.api}/namespaces/{self.namespace}/{self.mapping.plural}"
        return "/".join(part for part in (base, name, subresource) if part)

    def core(self, plural: str, name: str = "", subresource: str = "", group: str = "api/v1") -> str:
        """Return the path of other objects in the namespace."""
        parts = (f"/{group}/namespaces/{self.namespace}/{plural}", name, subresource)
        return "/".join(part for part in parts if part)

    async def create(self, job: Job) -> Object:
        """Create a job; refuses fields that the API does not know."""
        body = self.mapping.manifest(job, self.backend)
        return await self.api.post(self.jobs(), body, fieldValidation="Strict")

    async def patch(self, body: Object) -> None:
        """Change the job, and wait until the view shows it."""
        changed = await self.api.request("PATCH", self.jobs("job"), body, content_type=MERGE)

        def check() -> None:
            assert self.job["metadata"]["generation"] >= changed["metadata"]["generation"]

        await self.until(check)

    @property
    def job(self) -> Object:
        """The job of the case."""
        found = self.view.jobs[self.namespace].get("job")
        assert found is not None, "there is no job"
        return found

    @property
    def pods(self) -> dict[Identity, Object]:
        """The worker pods of the case's job."""
        found = {}
        for name, pod in self.view.pods[self.namespace].items():
            identity = self.mapping.identity(pod)
            if identity is not None and name.startswith("job-"):
                found[identity] = pod
        return found

    def newest(self, *indexes: int) -> list[Object]:
        """Return pods of the newest attempt by index."""
        pods = self.pods
        attempt = max((attempt for attempt, _ in pods), default=0)
        assert {(attempt, index) for index in indexes} <= set(pods), f"pods {sorted(pods)}"
        return [pods[attempt, index] for index in indexes]

    async def until(self, check: Callable[[], Any]) -> Any:
        """Call `check`, asynchronous or not, until it raises no AssertionError: after each change, and each 0.25 s."""
        deadline = time.monotonic() + self.backend.patience
        while True:
            change = self.view.change(self.namespace)
            try:
                found = check()
                return await found if inspect.isawaitable(found) else found
            except AssertionError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(
                        f"not within {self.backend.patience:g} s: {error}; {self.evidence()}"
                    ) from error
            try:
                await asyncio.wait_for(change.wait(), 0.25)
            except TimeoutError:
                continue

    def evidence(self) -> str:
        """Return the status of the job and the pods, for an error message."""
        job = self.view.jobs[self.namespace].get("job", {})
        return f"pods {sorted(self.view.pods[self.namespace])}, status {job.get('status')}"

    def check_invariants(self) -> None:
        """Check what must hold in every life of a job, whatever the case is about.

        - No pod of one attempt was created while one of another existed, and no pod was created twice.
        - The number of restarts never decreased, and a job that had ended stayed as it was.
        """
        self._check_fences()
        before: Object = {}
        for job in self.view.job_history[self.namespace]:
            if job["metadata"]["name"] != "job":
                continue
            if job["metadata"]["uid"] == before.get("metadata", {}).get("uid"):
                assert self.mapping.restarts(job) >= self.mapping.restarts(before), "the number of restarts went back"
                if (state := self.mapping.state(before)) in ("Succeeded", "Failed"):
                    assert self.mapping.state(job) == state, f"a job that has {state.lower()} is {job['status']}"
            before = job

    def _check_fences(self) -> None:
        alive: dict[str, Identity] = {}
        for kind, pod in self.view.history[self.namespace]:
            name, identity = pod["metadata"]["name"], self.mapping.identity(pod)
            if identity is None or not name.startswith("job-"):
                continue
            if kind == "ADDED":
                others = [other for other, (attempt, _) in alive.items() if attempt != identity[0]]
                assert not others, f"{name} was created while {others} existed"
                assert identity not in alive.values(), f"{name} was created twice"
                alive[name] = identity
            elif kind == "DELETED":
                alive.pop(name, None)


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    error: BaseException | None
    seconds: float


async def _run(case: Case, api: Api, mapping: Mapping, view: View, backend: Backend) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "conformance-"}}
    namespace = (await api.post("/api/v1/namespaces", body))["metadata"]["name"]
    trial = Trial(case, api, mapping, view, backend, namespace, case.starts, case.terminates)
    try:
        async with backend.attached(trial):
            for step in case.given:
                await step(trial)
            if case.job is not None:
                await trial.create(case.job)
            for step in case.steps:
                await step(trial)
            trial.check_invariants()
    finally:
        await api.delete(trial.jobs())
        await api.delete(f"/api/v1/namespaces/{namespace}")


async def run_cases(
    cases: Iterable[Case], api: Api, mapping: Mapping, backend: Backend, *, at_once: int
) -> dict[str, Outcome]:
    """Run cases side by side, and return how each of them ended, by its name."""
    places, outcomes = asyncio.Semaphore(at_once), dict[str, Outcome]()
    view = View(api, mapping)

    async def run(case: Case) -> None:
        async with places:
            started, error = time.monotonic(), None
            try:
                await _run(case, api, mapping, view, backend)
            except Exception as failure:  # noqa: BLE001 - the test of the case raises it
                error = failure
            outcomes[case.name] = Outcome(error, time.monotonic() - started)

    async with view.following():
        await asyncio.gather(*(run(case) for case in cases))
    return outcomes


def lookup(body: Any, path: str | tuple[str, ...]) -> Any:
    """Return what is at a path of an object, with dots between its parts; None where there is nothing."""
    for part in path.split(".") if isinstance(path, str) else path:
        if isinstance(body, list):
            body = body[int(part)] if int(part) < len(body) else None
        else:
            body = (body or {}).get(part)
    return body
