"""How a user's pod template and the operator's own part become one pod."""

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

_USERS = frozenset({"securityContext", "automountServiceAccountToken", "terminationMessagePolicy"})
"""Defaults of ours that a template may override. (A security profile is the cluster's to enforce, not ours.)"""


def merge_pod_spec(template: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The template's pod spec with the operator's own laid over it.

    Where both set a field, the operator's value stands, save for defaults that a template may override
    (securityContext and the like). The container named worker comes first, so that `kubectl logs` shows it.
    """
    merged = _merge(template, own)
    merged["containers"].sort(key=lambda c: c["name"] != constants.WORKER_CONTAINER)
    return merged


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for name, value in over.items():
        if name in _USERS and name in under:
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
    """Entries of both, by key; those of `under` keep their place."""
    result = {entry.get(key): entry for entry in under}
    for entry in over:
        below = result.get(entry[key])
        # A volume, a mount or a variable is one thing: replaced, not mixed. A container is merged.
        result[entry[key]] = _merge(below, entry) if below and "image" in entry else entry
    return list(result.values())
