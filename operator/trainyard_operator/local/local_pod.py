"""A pod of the process backend: its process, its environment, and its termination message."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.protocol.log_tail import MAX_CHARACTERS, excerpt
from trainyard.protocol.termination import MAX_BYTES
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.controller.backend import Refused
from trainyard_operator.lifecycle.observation import Pod

HOST = "127.0.0.1"


@dataclass(slots=True)
class LocalPod:
    """A pod and its process."""

    job: TrainingJob
    pod: dict[str, Any]
    container: dict[str, Any]
    container_env: dict[str, str]
    """Environment variables of the container."""
    folder: Path
    metrics_port: int = 0
    launcher_port: int = 0
    process: asyncio.subprocess.Process | None = None
    watcher: asyncio.Task[None] | None = None
    probe: asyncio.Task[None] | None = None

    @property
    def startable(self) -> bool:
        """Whether the pod has not been started and is not being deleted."""
        return self.pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in self.pod["metadata"]


def env_value(entry: dict[str, Any], pod: Pod, secrets: Mapping[str, Mapping[str, str]]) -> str:
    """Return the value of an environment variable.

    Of the sources of `valueFrom` only the pod's metadata and the operator's own Secret exist on this machine.

    Raises:
        Refused: the value comes from another source.
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


def read_termination_message(folder: Path, code: int) -> str:
    """Return the termination message; after a failure without one the end of the log, as the kubelet does.

    The kubelet takes the last 2 KiB. Here there is no such limit, so the excerpt contains the exception.
    """
    message = folder / "termination-log"
    text = message.read_text("utf-8", "replace") if message.exists() else ""
    if text or code == 0:
        return text
    return log_excerpt(folder / "log", MAX_BYTES)


def log_excerpt(log: Path, max_bytes: int) -> str:
    """Return what the end of a log says about a failure, at most `max_bytes` bytes."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_CHARACTERS))
        return excerpt(file.read().decode("utf-8", "replace"), max_bytes)
