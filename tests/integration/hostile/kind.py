"""What a kind of hostile job is: a manifest, what its pods do, and what its own status must say."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.integration.hostile.servers import Handler
from tests.support import kubelet
from tests.support.fake_kubelet import now
from tests.support.kube import Namespace, Object, eventually

Act = Callable[[Namespace, str], Awaitable[None]]
"""What the tenant does with the job of that name once it exists."""
Start = Callable[[str], kubelet.Status]
"""First status of a pod with that address."""

ELSEWHERE = "127.66.0.1"
"""An address that belongs to no pod. Nothing may call it."""
ELSEWHERE_PORT = 8066


def runs(ip: str) -> kubelet.Status:
    """The worker runs and is ready."""
    return kubelet.running(now(), ip=ip)


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One kind of hostile job."""

    name: str
    """Name of the job."""
    says: str
    """Pattern, in any case of letters, that a line of `described` must match; or the API server's refusal."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec beside those of `make_manifest`."""
    page: Handler | None = None
    """What listens on the port of the metrics page."""
    launcher: Handler | None = None
    """What listens on the port of the launcher."""
    start: Start = runs
    act: Act | None = None
    quota: bool = False
    """The job's namespace has a quota of two pods."""
    stored: bool = False
    """The object was stored before the present CRD was installed, which refuses it."""
    quick: bool = False
    """It belongs to the part for each change."""


def line_with(*patterns: str) -> str:
    """Return a pattern for a line in which all of these occur, in any order."""
    return "^" + "".join(f"(?=.*(?:{pattern}))" for pattern in patterns)


def described(status: Object) -> str:
    """Return what the status of a job says, one line for each statement."""
    lines = [f"phase {status.get('phase')}"]
    for condition in status.get("conditions") or ():
        lines.append("{type}={status} {reason}: {message}".format(**{"message": "", **condition}))
    for name in ("workers", "lastFailure", "progress"):
        if name in status:
            lines.append(f"{name} {json.dumps(status[name])}")
    return "\n".join(lines)


def matches(kind: Hostile, text: str) -> bool:
    """Return whether a text says what is wrong with a job of this kind."""
    return re.search(kind.says, text, re.IGNORECASE | re.MULTILINE) is not None


# --- what tenants do to their pods ----------------------------------------------------------------------------


async def first_pod(namespace: Namespace, name: str) -> str:
    """Wait for the first pod of a job to be started, and return its name."""
    pod = f"{name}-1-0"

    async def check() -> None:
        assert pod in (pods := await namespace.pods()), f"{pod} is not created"
        assert pods[pod]["status"].get("podIP"), f"{pod} is not started"

    await eventually(check)
    return pod


def edits(metadata: Mapping[str, Any]) -> Act:
    """Change the metadata of the first pod."""

    async def act(namespace: Namespace, name: str) -> None:
        pod = await first_pod(namespace, name)
        await namespace.api.patch(namespace.core("pods", pod), {"metadata": metadata})

    return act


async def loses_readiness(namespace: Namespace, name: str) -> None:
    """Let the first pod fail its readiness probe once the job runs, as a pod does whose ranks have ended."""
    pod = await first_pod(namespace, name)
    await namespace.has_phase("Running", name)
    ip = (await namespace.pods())[pod]["status"]["podIP"]
    await namespace.api.patch(
        namespace.core("pods", pod, "status"), {"status": kubelet.running(now(), ready=False, ip=ip)}
    )


def fails(message: str, code: int = 1) -> Start:
    """The worker has ended and left this termination message."""
    return lambda ip: kubelet.ended(now(), code, message=message)
