"""The merge of a user's pod template with the operator's own pod spec."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.protocol import constants
from trainyard_operator.manifests.template import Manifest, Template, TemplateError, child_list, child_object

_POD_DEFAULTS = ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "dnsPolicy", "schedulerName")
_CONTAINER_DEFAULTS = ("securityContext", "terminationMessagePolicy")
"""The operator's defaults, which a template may override; security profiles are enforced by the cluster."""

_REPLACEABLE_MOUNTS = frozenset({"/dev/shm", "/tmp"})
"""Where a template may mount a volume of its own in place of the operator's."""


def merge_pod_spec(template: Template, own: Manifest) -> Manifest:
    """Return the template's pod spec, overridden by the operator's own.

    Only defaults such as securityContext are not overridden. The container named worker comes first, so that
    `kubectl logs` shows it.

    Args:
        template: what the user has given.
        own: the operator's pod spec with one container, the worker, and its volumes.

    Raises:
        TemplateError: the template takes what the job itself needs, or has another shape than in the API.
    """
    [worker] = own["containers"]
    mounts, replaced = _merge_mounts(template, worker["volumeMounts"])
    merged_worker = {
        **_overlay(template.worker, worker, _CONTAINER_DEFAULTS, template.worker_field),
        "volumeMounts": mounts,
        "resources": merge_resources(template, worker["resources"]),
    }
    if ports := _merge_ports(template, worker.get("ports") or ()):
        merged_worker["ports"] = ports
    merged = {
        **_overlay(template.spec, own, _POD_DEFAULTS, template.field),
        "containers": [merged_worker, *template.sidecars],
        "volumes": [*template.volumes, *(v for v in own["volumes"] if v["name"] not in replaced)],
    }
    # The operator's init containers come first: the template's may need what they prepare.
    if own_init := own.get("initContainers"):
        merged["initContainers"] = [*own_init, *child_list(template.spec, "initContainers", template.field)]
    if secrets := [*(template.spec.get("imagePullSecrets") or ()), *(own.get("imagePullSecrets") or ())]:
        merged["imagePullSecrets"] = list({secret["name"]: secret for secret in secrets}.values())
    return merged


def merge_resources(template: Template, own: Mapping[str, Any]) -> Manifest:
    """Return the resources of the worker: those of the template, overridden one by one by `own`."""
    field = f"{template.worker_field}.resources"
    given = child_object(template.worker, "resources", template.worker_field)
    merged = {**given, **own}
    for kind in ("limits", "requests"):
        if resources := {**child_object(given, kind, field), **(own.get(kind) or {})}:
            merged[kind] = resources
    return merged


def mounts_at(template: Template, path: str) -> bool:
    """Return whether the template mounts a volume of its own at a path of the worker."""
    return any(_normal(mount["mountPath"]) == path for mount in template.mounts)


def _overlay(given: Manifest, own: Manifest, defaults: Sequence[str], field: str) -> Manifest:
    """Return an object of the template with the operator's fields, but with the template's value of each default."""
    merged = {**given, **own}
    for name in defaults:
        if name not in given or name not in own:
            continue
        # A default that is an object is merged field by field: fsGroup does not remove runAsNonRoot.
        if isinstance(own[name], dict):
            merged[name] = _merge_default(own[name], child_object(given, name, field), f"{field}.{name}")
        else:
            merged[name] = given[name]
    return merged


def _merge_default(own: Manifest, given: Manifest, field: str) -> Manifest:
    merged = {**own, **given}
    for name, value in own.items():
        if isinstance(value, dict) and name in given:
            merged[name] = {**value, **child_object(given, name, field)}
    return merged


def _merge_mounts(template: Template, own: Sequence[Manifest]) -> tuple[list[Manifest], set[str]]:
    """Return the mounts of the worker, and the names of the operator's volumes that the template replaces."""
    given = template.mounts
    paths = {_normal(mount["mountPath"]) for mount in given}
    kept, replaced = [], set()
    for mount in own:
        path = mount["mountPath"]
        if path not in paths:
            kept.append(mount)
        elif path in _REPLACEABLE_MOUNTS:
            replaced.add(mount["name"])
        else:
            raise TemplateError(
                f"{template.worker_field}.volumeMounts: {path} is the mount path of the volume {mount['name']} of the "
                "operator; choose another mountPath"
            )
    return [*given, *kept], replaced


def _merge_ports(template: Template, own: Sequence[Manifest]) -> list[Manifest]:
    """Return the ports of the worker: all of the template's and the operator's."""
    reserved = {port["name"]: port["containerPort"] for port in own}
    kept = []
    for port in template.ports:
        name, number = port.get("name"), port.get("containerPort")
        # The operator recognizes its launcher by the name of the port.
        if name in (constants.LAUNCHER_PORT_NAME, *reserved) and reserved.get(name) != number:
            raise TemplateError(
                f"{template.worker_field}.ports: the name {name} is reserved for a port of the operator; rename it"
            )
        if name not in reserved:
            kept.append(port)
    return [*kept, *own]


def _normal(path: str) -> str:
    """Return a mount path without repeated and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
