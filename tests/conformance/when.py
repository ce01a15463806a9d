"""Steps of the cases that do something: users, administrators, schedulers and kubelets."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.conformance.backends import bind, now, remove, write_status
from tests.conformance.model import Identity, Job, Object, Step
from tests.conformance.trial import Trial
from tests.support import kubelet
from tests.support.kube import unless_deleted


def ends(*indexes: int, code: int = 0, message: str = "") -> Step:
    """The programs of these workers of the newest attempt end."""

    async def step(trial: Trial) -> None:
        pods = trial.newest(*indexes)
        await asyncio.gather(*(trial.backend.end(trial, pod, code, message) for pod in pods))

    return step


def at_once(*steps: Step) -> Step:
    """Several things happen at the same time."""

    async def step(trial: Trial) -> None:
        await asyncio.gather(*(step(trial) for step in steps))

    return step


def becomes(*indexes: int, status: Callable[[], Object]) -> Step:
    """Pods of the newest attempt get a node, if they have none, and this status."""

    async def step(trial: Trial) -> None:
        for pod in trial.newest(*indexes):
            await bind(trial, pod)
            await write_status(trial, pod, status())

    return step


def start(*indexes: int) -> Step:
    """Pods of the newest attempt run."""
    return becomes(*indexes, status=lambda: kubelet.running(now()))


def is_unschedulable(*indexes: int, words: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") -> Step:
    """The scheduler finds no node for pods of the newest attempt."""

    async def step(trial: Trial) -> None:
        for pod in trial.newest(*indexes):
            await write_status(trial, pod, kubelet.unschedulable(words))

    return step


def let_all_start() -> Step:
    """From now on pods get a node and run by themselves, those that exist already as well."""

    async def step(trial: Trial) -> None:
        trial.starts = True
        for pod in list(trial.view.pods[trial.namespace].values()):
            if not pod["spec"].get("nodeName"):
                with unless_deleted():
                    await bind(trial, pod)
                    await write_status(trial, pod, kubelet.running(now()))

    return step


def starts_as(identity: Identity, status: Callable[[], Object]) -> Step:
    """A pod that is created later gets this status in place of a running one."""

    async def step(trial: Trial) -> None:
        trial.special[identity] = status()

    return step


def go(*identities: Identity) -> Step:
    """Pods that are being deleted end."""

    async def step(trial: Trial) -> None:
        for identity in identities:

            def check(identity: Identity = identity) -> Object:
                pod = trial.pods[identity]
                assert "deletionTimestamp" in pod["metadata"], f"nobody has deleted {identity}"
                return pod

            await remove(trial, await trial.until(check))

    return step


def delete_pod(index: int, seconds: int = 30) -> Step:
    """A user deletes a pod of the newest attempt, which has some seconds to end."""

    async def step(trial: Trial) -> None:
        [pod] = trial.newest(index)
        await trial.api.delete(trial.core("pods", pod["metadata"]["name"]), gracePeriodSeconds=seconds)

    return step


def suspend(value: bool = True) -> Step:
    """A user suspends or resumes the job."""

    async def step(trial: Trial) -> None:
        await trial.patch(trial.mapping.suspend(value))

    return step


def edit(**spec: Any) -> Step:
    """A user changes fields of the spec."""

    async def step(trial: Trial) -> None:
        await trial.patch({"spec": spec})

    return step


def scale(replicas: int) -> Step:
    """A user or an autoscaler writes the scale subresource."""

    async def step(trial: Trial) -> None:
        body = {"spec": {"replicas": replicas}}
        path = trial.jobs("job", "scale")
        await trial.api.request("PATCH", path, body, content_type="application/merge-patch+json")

    return step


def delete_job() -> Step:
    """A user deletes the job."""

    async def step(trial: Trial) -> None:
        await trial.api.delete(trial.jobs("job"))

    return step


def remove_pods() -> Step:
    """The garbage collector removes all pods of the namespace."""

    async def step(trial: Trial) -> None:
        await trial.api.delete(trial.core("pods"), gracePeriodSeconds=0)

    return step


def delete_namespace() -> Step:
    """An administrator deletes the namespace; its controller does not run here."""

    async def step(trial: Trial) -> None:
        await trial.api.delete(f"/api/v1/namespaces/{trial.namespace}")

    return step


def create(job: Job) -> Step:
    """A user creates another job."""

    async def step(trial: Trial) -> None:
        await trial.create(job)

    return step


def put(plural: str, body: Object, *, group: str = "api/v1", status: Object | None = None) -> Step:
    """Somebody creates another object in the namespace; its controller writes a status."""

    async def step(trial: Trial) -> None:
        await trial.api.post(trial.core(plural, group=group), body)
        if status is not None:
            name = body["metadata"]["name"]
            await trial.api.patch(trial.core(plural, name, "status", group=group), {"status": status})

    return step


def drop(plural: str, name: str) -> Step:
    """Somebody deletes an object in the namespace."""

    async def step(trial: Trial) -> None:
        await trial.api.delete(trial.core(plural, name))

    return step


def enforce_pod_security(level: str) -> Step:
    """An administrator enforces a level of Pod Security in the namespace."""

    async def step(trial: Trial) -> None:
        labels = {"pod-security.kubernetes.io/enforce": level}
        await trial.api.patch(f"/api/v1/namespaces/{trial.namespace}", {"metadata": {"labels": labels}})

    return step
