"""What gives pods their states: a writer of statuses that plays scheduler and kubelet, or a real node."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus

from tests.conformance.model import Object
from tests.conformance.trial import Trial
from tests.support import kubelet
from tests.support.background import background
from tests.support.kube import ApiRefusal, unless_deleted

NODE = "node-1"
TERMINATION = 0.3
"""Seconds in which containers end that are told to. Faster than any kubelet, but a pod that is gone before a controller
looks has ended for no reason that it could see."""


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


async def bind(trial: Trial, pod: Object, node: str = NODE) -> None:
    """Give a pod its node, as a scheduler does; one that has a node keeps it."""
    name = pod["metadata"]["name"]
    if (await trial.api.get(trial.core("pods", name)))["spec"].get("nodeName"):
        return
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    try:
        await trial.api.post(trial.core("pods", name, "binding"), body)
    except ApiRefusal as error:
        if error.code != HTTPStatus.CONFLICT:  # bound meanwhile
            raise


async def write_status(trial: Trial, pod: Object, status: Object) -> None:
    """Write the status of a pod."""
    path = trial.core("pods", pod["metadata"]["name"], "status")
    await trial.api.patch(path, {"status": status})


async def remove(trial: Trial, pod: Object) -> None:
    """Remove a terminating pod, as its kubelet does when its containers have ended."""
    with unless_deleted():
        await trial.api.delete(trial.core("pods", pod["metadata"]["name"]), gracePeriodSeconds=0)


async def _terminate(trial: Trial, pod: Object) -> None:
    await asyncio.sleep(TERMINATION)
    await remove(trial, pod)


class StatusWriter:
    """Plays scheduler and kubelet on an API server without nodes: pods run, and end when they are deleted."""

    command: Sequence[str] = ("train",)
    patience = 40.0

    def __init__(self) -> None:
        """Use any image: nothing runs."""
        self.image = kubelet.IMAGE
        self.resources: Object = {}

    @asynccontextmanager
    async def attached(self, trial: Trial) -> AsyncIterator[None]:
        """Handle the events of the namespace, one after another, while the context lasts."""
        events = asyncio.Queue[Object]()
        started: set[str] = set()
        ending: set[str] = set()

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    pod = await events.get()
                    uid = pod["metadata"]["uid"]
                    if not pod["metadata"].get("deletionTimestamp"):
                        with unless_deleted():
                            await self._start(trial, pod, started)
                    elif trial.terminates and uid not in ending:
                        ending.add(uid)
                        group.create_task(_terminate(trial, pod))

        trial.view.listeners[trial.namespace] = lambda kind, pod: None if kind == "DELETED" else events.put_nowait(pod)
        try:
            async with background(work()):
                yield
        finally:
            del trial.view.listeners[trial.namespace]

    async def _start(self, trial: Trial, pod: Object, started: set[str]) -> None:
        uid = pod["metadata"]["uid"]
        # Once: the event of the binding shows the pod as it was before its first status.
        if trial.starts and uid not in started and not pod["spec"].get("schedulingGates"):
            started.add(uid)
            identity = trial.mapping.identity(pod)
            await bind(trial, pod)
            special = trial.special.get(identity) if identity else None
            await write_status(trial, pod, special or kubelet.running(now()))

    async def end(self, trial: Trial, pod: Object, code: int, message: str) -> None:
        """Write the status of a container that has exited."""
        await write_status(trial, pod, kubelet.ended(now(), code, message=message))

    async def environment(self, trial: Trial, pod: Object) -> Object:
        """Return the variables with a value in the spec."""
        return {entry["name"]: entry["value"] for entry in worker(pod)["env"] if "value" in entry}


def worker(pod: Object) -> Object:
    """Return the container of the program."""
    found: Object = next(c for c in pod["spec"]["containers"] if c["name"] == "worker")
    return found


_WAIT = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
while not os.path.exists("/tmp/end"): time.sleep(0.05)
teller, code, message = open("/tmp/end").read().split(" ", 2)
while os.path.exists(f"/proc/{teller}"): time.sleep(0.05)  # the end of this program would kill it
if message: print(message, flush=True)
os._exit(int(code))
"""
_END = """
import os, sys
with open("/tmp/told", "w") as file: file.write(f"{os.getpid()} {sys.argv[1]}")
os.rename("/tmp/told", "/tmp/end")
"""
_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


class RealNode:
    """A node with a kubelet: programs wait for a file that says how they are to end."""

    command: Sequence[str] = ("python", "-S", "-c", _WAIT)
    patience = 90.0

    def __init__(self, image: str, kubectl: Callable[..., Awaitable[str]]) -> None:
        """Use an image with Python, and `kubectl(*arguments)`, which returns what it prints."""
        self.image, self._kubectl = image, kubectl
        # A share of the processor: pods without a request starve beside other processes of the machine.
        self.resources: Object = {"requests": {"cpu": "20m"}}

    @asynccontextmanager
    async def attached(self, trial: Trial) -> AsyncIterator[None]:
        """Wait until pods can be created in the namespace; the cluster cares for them."""

        async def check() -> None:
            accounts = (await trial.api.get(trial.core("serviceaccounts")))["items"]
            assert accounts, "the namespace has no service account yet"

        await trial.until(check)
        yield

    async def _python(self, trial: Trial, pod: Object, *arguments: str) -> str:
        execute = ("exec", pod["metadata"]["name"], "-c", "worker", "--", "python", "-S", "-c", *arguments)
        return await self._kubectl("-n", trial.namespace, *execute)

    async def end(self, trial: Trial, pod: Object, code: int, message: str) -> None:
        """Write the file."""
        await self._python(trial, pod, _END, f"{code} {message}")

    async def environment(self, trial: Trial, pod: Object) -> Object:
        """Return what a process in the container sees."""
        found: Object = json.loads(await self._python(trial, pod, _ENVIRONMENT))
        return found
