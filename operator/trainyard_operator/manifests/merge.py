"""The merge of a user's pod template with the operator's own pod spec."""

from typing import Any

from trainyard.protocol import constants

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
}
"""Lists whose entries are merged by key, as in a strategic merge patch; other lists are replaced."""

_OVERRIDABLE = frozenset({"securityContext", "automountServiceAccountToken", "terminationMessagePolicy"})
"""The operator's defaults that a template may override; security profiles are enforced by the cluster."""


def merge_pod_spec(template: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the template's pod spec, overridden by the operator's own.

    Only defaults such as securityContext are not overridden. The container named worker comes first, so that
    `kubectl logs` shows it.
    """
    merged = _merge(template, own)
    merged["containers"].sort(key=lambda c: c["name"] != constants.WORKER_CONTAINER)
    return merged


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for name, value in over.items():
        if name in _OVERRIDABLE and name in under:
            continue
        below = under.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            result[name] = _merge(below, value)
        elif isinstance(value, list) and isinstance(below, list) and name in _KEYS:
            result[name] = _merge_lists(below, value, _KEYS[name])
        else:
            result[name] = value
    return result


def _merge_lists(under: list[dict[str, Any]], over: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the entries of both lists, merged by key, in the order of `under` and then of `over`."""
    result = {entry.get(key): entry for entry in under}
    for entry in over:
        below = result.get(entry[key])
        # A volume, a mount or a variable is replaced; a container is merged field by field.
        result[entry[key]] = _merge(below, entry) if below and "image" in entry else entry
    return list(result.values())
