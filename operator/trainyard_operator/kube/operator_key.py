"""The operator's secret key, from which the tokens of all jobs are derived, kept in a Secret of its own."""

import base64
import logging
import secrets
from typing import Any

from trainyard.protocol import constants
from trainyard_operator.kube.api import ApiError, KubeApi
from trainyard_operator.kube.paths import core_path

log = logging.getLogger(__name__)

_FIELD = "key"


async def operator_key(api: KubeApi, namespace: str, name: str) -> bytes:
    """Return the key, which is created on first use.

    If the Secret can be neither read nor created, return a key that lasts as long as this process.
    """
    path = core_path("secrets", namespace)
    try:
        return await _read_or_create(api, path, namespace, name)
    except ApiError as error:
        log.warning(
            "the Secret %s/%s can be neither read nor created (%s); after a restart of the operator, groups that "
            "fail get new pods instead of a restart in place",
            namespace,
            name,
            error,
        )
        return secrets.token_bytes(32)
    # The Secret is there, but was changed. It may not be overwritten, and must not end the operator.
    except (KeyError, TypeError, ValueError):
        log.warning(
            "the Secret %s/%s has no valid field %s; delete it and restart the operator; until then, groups that fail "
            "after a restart of the operator get new pods instead of a restart in place",
            namespace,
            name,
            _FIELD,
        )
        return secrets.token_bytes(32)


async def _read_or_create(api: KubeApi, path: str, namespace: str, name: str) -> bytes:
    try:
        found = await api.request("GET", f"{path}/{name}")
    except ApiError as error:
        if error.code != 404:
            raise
    else:
        return _key_in(found)
    key = secrets.token_bytes(32)
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {constants.LABEL_MANAGED_BY: constants.MANAGED_BY},
        },
        "data": {_FIELD: base64.b64encode(key).decode()},
        "immutable": True,
    }
    try:
        await api.request("POST", path, body)
    except ApiError as error:
        if error.code != 409:  # another operator created it first
            raise
        found = await api.request("GET", f"{path}/{name}")
        return _key_in(found)
    return key


def _key_in(secret: dict[str, Any]) -> bytes:
    """Return the key that a Secret holds.

    Raises:
        KeyError, TypeError, ValueError: it holds none.
    """
    key = base64.b64decode(secret["data"][_FIELD], validate=True)
    if not key:
        raise ValueError("the key is empty")
    return key
