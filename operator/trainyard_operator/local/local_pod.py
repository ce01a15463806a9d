"""One pod of the process backend, and what it needs to know of this machine."""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.controller.backend import Refused
from trainyard_operator.lifecycle.observation import Pod

HOST = "127.0.0.1"
_LOG_TAIL = 2048


@dataclass(slots=True)
class Hosted:
    """A pod, and the process that it stands for."""

    job: TrainingJob
    pod: dict[str, Any]
    container: dict[str, Any]
    given: dict[str, str]
    """Environment variables that the container asks for."""
    folder: Path
    metrics_port: int = 0
    launcher_port: int = 0
    process: asyncio.subprocess.Process | None = None
    watcher: asyncio.Task[None] | None = None
    probe: asyncio.Task[None] | None = None

    @property
    def waits(self) -> bool:
        """Whether it has not been started, and is to be."""
        return self.pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in self.pod["metadata"]


def value_of(entry: dict[str, Any], pod: Pod, secrets: Mapping[str, Mapping[str, str]]) -> str:
    """Value of an environment variable; of the sources only fields of the pod's metadata and our Secret exist.

    Raises:
        Refused: the value comes from somewhere else.
    """
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    path = entry["valueFrom"].get("fieldRef", {}).get("fieldPath", "")
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(pod["metadata"][path.removeprefix("metadata.")])
    secret = entry["valueFrom"].get("secretKeyRef", {})
    if secret.get("name") in secrets:
        return secrets[secret["name"]][secret["key"]]
    fix = "give it a value, or remove it and set it in your shell"
    raise Refused(Reason.PODS_REFUSED, f"spec.env {entry['name']}: valueFrom needs a cluster; {fix}")


def last_words(folder: Path, code: int) -> str:
    """The termination message; after a failure without one the end of the log, as the kubelet has it."""
    message = folder / "termination-log"
    text = message.read_text("utf-8", "replace") if message.exists() else ""
    if text or code == 0:
        return text
    return (folder / "log").read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
