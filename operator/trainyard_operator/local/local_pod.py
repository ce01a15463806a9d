"""A pod of the process backend: its process, its environment, and its termination message."""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.protocol import constants
from trainyard.protocol.log_tail import excerpt, read_end
from trainyard.protocol.termination import MAX_BYTES
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Reason
from trainyard_operator.controller.backend import Refused
from trainyard_operator.lifecycle.observation import Pod

HOST = "127.0.0.1"
_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")
"""A reference to a variable, or an escaped `$`."""
_POD_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")


@dataclass(slots=True)
class LocalPod:
    """A pod and its process."""

    job: TrainingJob
    pod: dict[str, Any]
    container: dict[str, Any]
    container_env: dict[str, str]
    """Environment variables of the container, before references to others are replaced."""
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of the container on this machine; set when it starts."""
    metrics_port: int = 0
    launcher_port: int = 0
    process: asyncio.subprocess.Process | None = None
    watcher: asyncio.Task[None] | None = None
    probe: asyncio.Task[None] | None = None

    @property
    def startable(self) -> bool:
        """Whether the pod has not been started and is not being deleted."""
        return self.pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in self.pod["metadata"]


def env_problems(job: TrainingJob) -> list[str]:
    """Return what keeps the environment of a job's pods from existing on this machine: field, rule and fix."""
    roles = [job.spec.workers.template] + ([job.spec.parameter_server.template] if job.spec.parameter_server else [])
    containers = [c for role in roles for c in role.spec.get("containers") or () if isinstance(c, dict)]
    of_templates = [c.get("env") or () for c in containers if c.get("name") == constants.WORKER_CONTAINER]
    entries = [entry.to_dict() for entry in job.spec.env or ()]
    entries += [entry for env in of_templates for entry in env if isinstance(entry, dict)]
    return [problem for entry in entries if (problem := _env_problem(entry)) is not None]


def _env_problem(entry: dict[str, Any]) -> str | None:
    name = entry.get("name")
    # A process can have only variables whose names end at the first "=", and whose texts end at the first NUL.
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        return f"spec.env {name!r}: a name must not be empty or contain = or NUL; correct it"
    if "\0" in str(entry.get("value", "")):
        return f"spec.env {name}: a value must not contain NUL; correct it"
    if _is_of_cluster(entry):
        if name in os.environ:
            return None
        return f"spec.env {name}: valueFrom needs a cluster; set the variable {name} in your shell, or remove it"
    path = _source(entry, "fieldRef").get("fieldPath")
    if entry.get("valueFrom") is not None and path not in _POD_FIELDS:
        return f"spec.env {name}: valueFrom needs a cluster; give it a value, or remove it and set it in your shell"
    return None


def _is_of_cluster(entry: dict[str, Any]) -> bool:
    """Return whether a value comes from a Secret or ConfigMap; a local run takes the value of the shell instead."""
    return bool(_source(entry, "secretKeyRef") or _source(entry, "configMapKeyRef"))


def _source(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    source = entry.get("valueFrom")
    found = source.get(kind) if isinstance(source, dict) else None
    return found if isinstance(found, dict) else {}


def env_value(entry: dict[str, Any], pod: Pod, secrets: Mapping[str, Mapping[str, str]]) -> str:
    """Return the value of an environment variable.

    Of the sources of `valueFrom` only the pod's metadata and the operator's own Secret exist on this machine; in place
    of other Secrets and ConfigMaps the variable of the same name in the environment of this process counts.

    Raises:
        Refused: the value comes from another source, or the name or the value cannot be that of a variable.
    """
    secret = _source(entry, "secretKeyRef")
    if secret.get("name") in secrets:
        return secrets[secret["name"]][secret["key"]]
    if (problem := _env_problem(entry)) is not None:
        raise Refused(Reason.PODS_REFUSED, problem)
    if entry.get("valueFrom") is None:
        return str(entry.get("value", ""))
    if _is_of_cluster(entry):
        return os.environ[entry["name"]]
    return str(pod["metadata"][_source(entry, "fieldRef")["fieldPath"].removeprefix("metadata.")])


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with `$(NAME)` replaced by variables of the container, as the kubelet does in env and arguments.

    `$$` is an escaped `$`; a reference to a variable that the container does not have stays as it is.
    """
    return _REFERENCE.sub(lambda found: "$" if found[1] is None else variables.get(found[1], found[0]), text)


def read_termination_message(folder: Path, code: int) -> str:
    """Return the termination message; after a failure without one the end of the log, as the kubelet does.

    The kubelet takes the last 2 KiB. Here there is no such limit, so the excerpt contains the exception.
    """
    message = folder / "termination-log"
    text = message.read_text("utf-8", "replace") if message.exists() else ""
    if text or code == 0:
        return text
    return excerpt(read_end(folder / "log"), MAX_BYTES)
