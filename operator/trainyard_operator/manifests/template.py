"""The pod spec of a user's template, checked as far as the operator merges it; the API server checks all else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainyard.protocol import constants
from trainyard.resource.urls import SECRET_VARIABLES

Manifest = dict[str, Any]
"""A Kubernetes object as a plain dictionary, or a part of one."""

VOLUME_PREFIX = "trainyard-"
"""Prefix of the operator's volumes. All other names are free for a template's own volumes."""


class TemplateError(ValueError):
    """A template from which no pod can be built. The message names the field, the rule and the fix."""


@dataclass(frozen=True, slots=True)
class Template:
    """The pod spec of a template; a field that is null counts as absent, as in the API."""

    field: str
    """Path of the pod spec in the job, for error messages."""
    spec: Manifest
    """Fields of the pod spec."""
    worker: Manifest
    """The container named worker; empty if the template has none."""
    sidecars: list[Manifest]
    """All other containers."""
    volumes: list[Manifest]
    """Volumes of the pod."""

    @property
    def worker_field(self) -> str:
        """Return the path of the worker container in the job."""
        return f"{self.field}.containers[{constants.WORKER_CONTAINER}]"

    @property
    def host_network(self) -> bool:
        """Whether the pod is in the network of its node."""
        return self.spec.get("hostNetwork") is True

    @property
    def env(self) -> list[Manifest]:
        """Return the variables of the worker container.

        Raises:
            TemplateError: the value of one is secret, and is not taken from a Secret.
        """
        entries = _entries(self.worker, "env", "name", self.worker_field)
        for entry in entries:
            if entry["name"] in SECRET_VARIABLES and entry.get("value"):
                raise TemplateError(
                    f"{self.worker_field}.env[{entry['name']}]: must come from a Secret, since every user who may read "
                    "the job can read its values; use valueFrom.secretKeyRef, or envFrom"
                )
        return entries

    @property
    def mounts(self) -> list[Manifest]:
        """Return the volume mounts of the worker container."""
        return _entries(self.worker, "volumeMounts", "mountPath", self.worker_field)

    @property
    def ports(self) -> list[Manifest]:
        """Return the ports of the worker container."""
        return child_list(self.worker, "ports", self.worker_field)

    @property
    def grace_seconds(self) -> int | None:
        """Return the grace period of the pod in seconds; None if the template has none.

        Raises:
            TemplateError: it is not a whole number from 0.
        """
        value = self.spec.get("terminationGracePeriodSeconds")
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        raise TemplateError(
            f"{self.field}.terminationGracePeriodSeconds: must be a number of seconds, for example 120; correct it"
        )


def read_template(spec: Mapping[str, Any], field: str) -> Template:
    """Return the template whose pod spec is `spec`; `field` is its path in the job.

    Raises:
        TemplateError: a part that the operator merges has another shape than in the API.
    """
    present = _without_nulls(spec)
    containers = _entries(present, "containers", "name", field)
    volumes = _entries(present, "volumes", "name", field)
    for kind, entries in (("containers", containers), ("volumes", volumes)):
        names = [entry["name"] for entry in entries]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise TemplateError(f"{field}.{kind}: two have the name {repeated[0]}; rename one")
    for volume in volumes:
        if volume["name"].startswith(VOLUME_PREFIX):
            raise TemplateError(
                f"{field}.volumes: {volume['name']}: names that start with {VOLUME_PREFIX} are reserved for the "
                "operator; rename it"
            )
    workers = [c for c in containers if c["name"] == constants.WORKER_CONTAINER]
    sidecars = [c for c in containers if c["name"] != constants.WORKER_CONTAINER]
    _entries(present, "imagePullSecrets", "name", field)
    return Template(field, present, _without_nulls(workers[0]) if workers else {}, sidecars, volumes)


def child_object(parent: Mapping[str, Any], name: str, field: str) -> Manifest:
    """Return a field that is an object, without its null fields; empty if it is absent.

    Raises:
        TemplateError: it is not an object.
    """
    value = parent.get(name)
    if value is not None and not isinstance(value, dict):
        raise TemplateError(f"{field}.{name}: must be an object; correct it")
    return _without_nulls(value or {})


def child_list(parent: Mapping[str, Any], name: str, field: str) -> list[Manifest]:
    """Return a field that is a list of objects; empty if it is absent.

    Raises:
        TemplateError: it is something else.
    """
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TemplateError(f"{field}.{name}: must be a list of objects; correct it")
    return value


def _entries(parent: Mapping[str, Any], name: str, key: str, field: str) -> list[Manifest]:
    """Return a field that is a list of objects, each with a text `key`."""
    entries = child_list(parent, name, field)
    for index, entry in enumerate(entries):
        if not isinstance(entry.get(key), str):
            raise TemplateError(f"{field}.{name}[{index}].{key}: is required and must be a text; add it")
    return entries


def _without_nulls(value: Mapping[str, Any]) -> Manifest:
    return {name: entry for name, entry in value.items() if entry is not None}
