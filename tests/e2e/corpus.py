"""The claim `corpus` that some samples mount, on a folder of the node."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.namespace import Body, Namespace
from tests.e2e.node_faults import TRAINER, NodeFaults

CLAIM: Body = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "corpus"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


@contextmanager
def corpus_claim(
    namespace: Namespace, node_faults: NodeFaults, write: Callable[[Path], None], *others: str
) -> Iterator[Path]:
    """Make the claim while the context lasts, and yield its folder, as this machine sees it.

    Args:
        namespace: where it is made.
        node_faults: of the node with the folder.
        write: writes what it holds; all of it is the trainer's afterwards.
        others: other claims, which jobs make themselves and which get empty folders of the node.
    """
    volumes = {name: node_faults.volume(namespace, name) for name in ("corpus", *others)}
    folder = volumes["corpus"].here
    try:
        write(folder)
        for path in folder.rglob("*"):
            os.chown(path, TRAINER, TRAINER)
        for name, volume in volumes.items():
            volume.offer(namespace, name)
        namespace.apply(CLAIM)
        yield folder
    finally:
        for volume in volumes.values():
            volume.withdraw(namespace, wait=False)
            volume.remove()
