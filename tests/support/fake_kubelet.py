"""A fake kubelet for clusters without nodes, and a recorder of all events of pods and jobs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp

from tests.support import kubelet
from tests.support.background import background
from tests.support.fake_cluster import identity
from tests.support.kube import ApiRefusal, Namespace, Object, unless_deleted

Policy = Callable[[Object], kubelet.Status | None]
"""Returns the next status of a running pod; None: it keeps running."""
Start = Callable[[Object], kubelet.Status]
"""Returns the first status of a new pod."""
_PASSING = (409, 410, 429, 500, 503, 504)
"""Refusals after which a client lists and tries again."""


async def report(namespace: Namespace, name: str, status: kubelet.Status) -> None:
    """Write the status of a pod, after binding it to its node as a scheduler would."""
    pod = await namespace.api.get(namespace.core("pods", name))
    if not pod["spec"].get("nodeName"):
        target = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await namespace.api.post(namespace.core("pods", name, "binding"), binding)
    await namespace.api.patch(namespace.core("pods", name, "status"), {"status": status})


async def run_all(namespace: Namespace, *names: str) -> None:
    """Let the workers of pods run."""
    await asyncio.gather(*(report(namespace, name, kubelet.running(now())) for name in names))


async def end_all(namespace: Namespace, *names: str, code: int = 0, message: str = "") -> None:
    """Let the workers of pods end."""
    status = kubelet.ended(now(), code, message=message)
    await asyncio.gather(*(report(namespace, name, status) for name in names))


async def is_unschedulable(namespace: Namespace, name: str) -> None:
    """Report that the scheduler has found no node for a pod."""
    await namespace.api.patch(namespace.core("pods", name, "status"), {"status": kubelet.unschedulable()})


async def finish_deletion(namespace: Namespace, name: str) -> None:
    """Remove a terminating pod, as its kubelet does when it has stopped."""
    with unless_deleted():
        await namespace.api.delete(namespace.core("pods", name), gracePeriodSeconds=0)


def now() -> datetime:
    return datetime.now(UTC)


class Recorder:
    """All events of pods and jobs in a namespace, in the order in which etcd has them."""

    def __init__(self) -> None:
        self.pod_events: list[tuple[str, Object]] = []
        self.statuses: list[Object] = []

    def created(self) -> list[str]:
        """Return the names of pods in the order of their creation."""
        return [pod["metadata"]["name"] for kind, pod in self.pod_events if kind == "ADDED"]

    def check_invariants(self, *, limit: int) -> None:
        """Check what must hold in every lifecycle.

        - No pod of one attempt was created while one of another existed.
        - No pod was created twice.
        - The attempt never decreased, the restart limit was never exceeded, and a finished job stayed finished.
        """
        alive: set[str] = set()
        attempts: dict[str, int] = {}
        for kind, pod in self.pod_events:
            name = pod["metadata"]["name"]
            attempts[name] = identity(pod)[0]
            if kind == "ADDED":
                others = {other for other in alive if attempts[other] != attempts[name]}
                assert not others, f"{name} was created while {others} existed"
                alive.add(name)
            elif kind == "DELETED":
                alive.discard(name)
        created = self.created()
        assert len(created) == len(set(created)), "a pod was created twice"
        before: Object = {}
        for status in self.statuses:
            for field in ("attempt", "restarts", "restartsCounted"):
                assert status.get(field, 0) >= before.get(field, 0), f"{field} went back"
            assert status.get("restartsCounted", 0) <= limit
            if before.get("phase") in ("Succeeded", "Failed"):
                assert (status["phase"], status["conditions"]) == (before["phase"], before["conditions"])
            before = status


@asynccontextmanager
async def recording(namespace: Namespace, since: str = "") -> AsyncIterator[Recorder]:
    """Record all events since a resource version, by default from now on."""
    recorder, api = Recorder(), namespace.api
    # Each kind has its own: the server does not remember versions from before the installation of the CRD.
    paths = namespace.core("pods"), namespace.jobs()
    of_pods, of_jobs = [since or (await api.get(path))["metadata"]["resourceVersion"] for path in paths]

    async def pods() -> None:
        async for kind, pod in api.watch(namespace.core("pods"), of_pods):
            recorder.pod_events.append((kind, pod))

    async def jobs() -> None:
        async for _, job in api.watch(namespace.jobs(), of_jobs):
            recorder.statuses.append(job.get("status", {}))

    async with background(pods(), jobs()):
        yield recorder


async def follow_pods(namespace: Namespace, handle: Callable[[Object], Awaitable[None]]) -> None:
    """Call `handle` for each pod of a namespace and after each of its changes, until cancelled.

    As kubelets do, it lists the pods again when the API server has no older changes, is overloaded or does not answer.
    What is done for a pod must not be done twice by `handle`.
    """
    path = namespace.core("pods")
    while True:
        try:
            listed = await namespace.api.get(path)
            for pod in listed["items"]:
                with unless_deleted():
                    await handle(pod)
            async for kind, pod in namespace.api.watch(path, listed["metadata"]["resourceVersion"]):
                if kind != "DELETED":
                    with unless_deleted():
                        await handle(pod)
        except (ApiRefusal, aiohttp.ClientError) as error:
            if isinstance(error, ApiRefusal) and error.code not in _PASSING:
                raise
            print(f"the fake kubelet lists the pods of {namespace.name} again: {error!r}")
            await asyncio.sleep(0.1)


@asynccontextmanager
async def fake_kubelet(
    namespace: Namespace, policy: Policy = lambda _: None, start: Start = lambda _: kubelet.running(now())
) -> AsyncIterator[None]:
    """Play a kubelet: pods start, do what the policy says, and end when they are deleted."""

    started: set[str] = set()

    async def handle(pod: Object) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if pod["metadata"].get("deletionTimestamp"):
            await finish_deletion(namespace, name)
        # Once: the event of the binding shows the pod as it was before its first status.
        elif uid not in started and not pod["status"].get("containerStatuses"):
            await report(namespace, name, start(pod))
            started.add(uid)
        elif _runs(pod) and (status := policy(pod)):
            await report(namespace, name, status)

    async with background(follow_pods(namespace, handle)):
        yield


def _runs(pod: Object) -> bool:
    """Whether the first container of a pod runs."""
    containers = pod["status"].get("containerStatuses")
    return bool(containers) and "running" in containers[0]["state"]
