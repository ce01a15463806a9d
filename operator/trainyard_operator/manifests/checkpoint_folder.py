"""The init container that creates the folder for the checkpoints of a user's own program.

The volume may be shared by many jobs, so each has a folder of its own. It must belong to the user that the program runs
as, so neither the operator nor a `subPath`, which the kubelet creates as root, can create it: the program's own image
does, with the program's security context.
"""

from collections.abc import Sequence
from typing import Any

from trainyard.protocol import constants

FOLDER_CONTAINER = "trainyard-checkpoint-folder"


def folder_container(worker: dict[str, Any], folder: str, template: Sequence[Any]) -> dict[str, Any]:
    """Return an init container that creates `folder`.

    Args:
        worker: the worker container, before the user's template is merged. The init container gets its image and its
            resources, so that it fits every quota and adds nothing to the requests of the pod.
        folder: path of the folder on the checkpoint volume.
        template: containers of the user's pod template; that of the worker may have a security context.
    """
    container = {
        "name": FOLDER_CONTAINER,
        "image": worker["image"],
        "command": ["mkdir", "-p", folder],
        "resources": worker["resources"],
        "volumeMounts": [{"name": "checkpoints", "mountPath": constants.CHECKPOINT_MOUNT}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if "imagePullPolicy" in worker:
        container["imagePullPolicy"] = worker["imagePullPolicy"]
    for entry in template:
        if isinstance(entry, dict) and entry.get("name") == constants.WORKER_CONTAINER and "securityContext" in entry:
            container["securityContext"] = entry["securityContext"]
    return container
