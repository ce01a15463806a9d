"""The init container that creates the folder for the checkpoints of a user's own program.

The volume may be shared by many jobs, so each has a folder of its own. It must belong to the user that the program runs
as, so neither the operator nor a `subPath`, which the kubelet creates as root, can create it: the program's own image
does, with the program's security context.
"""

from trainyard_operator.manifests.template import Manifest

FOLDER_CONTAINER = "trainyard-checkpoint-folder"


def folder_container(worker: Manifest, template: Manifest, mount: Manifest, folder: str) -> Manifest:
    """Return an init container that creates a folder on the checkpoint volume.

    Args:
        worker: the worker container, before the user's template is merged. The init container gets its image and its
            resources, so that it fits every quota and adds nothing to the requests of the pod.
        template: the worker container of the user's template, which may have a security context.
        mount: mount of the checkpoint volume.
        folder: path of the folder.
    """
    container = {
        "name": FOLDER_CONTAINER,
        "image": worker["image"],
        "command": ["mkdir", "-p", folder],
        "resources": worker["resources"],
        "volumeMounts": [mount],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if "imagePullPolicy" in worker:
        container["imagePullPolicy"] = worker["imagePullPolicy"]
    if "securityContext" in template:
        container["securityContext"] = template["securityContext"]
    return container
