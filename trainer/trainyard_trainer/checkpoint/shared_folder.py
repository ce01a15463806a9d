"""A check that all workers have the same checkpoint volume, before they train for hours and then cannot save."""

import time
import uuid
from pathlib import Path

import torch.distributed as dist

from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.world import World

PATIENCE = 30.0
"""Seconds in which a file of one node must be visible on all others: network file systems cache directories."""
_NAMED = 3
"""Most workers that are named in an error."""


def check_shared(root: Location, world: World) -> None:
    """Check that all ranks see the folder of rank 0, parameter servers too; all of them must call this.

    An object store is the same for all; ranks of a single worker share its volumes.

    Raises:
        ConfigError: some workers have another volume at this path; the same on all ranks.
    """
    size = world.size + world.servers
    if not isinstance(root, Path) or size == world.local_size:
        return
    # Without a parameter server the default group may be that of NCCL, which is for tensors on GPUs.
    group = None if world.servers else world.control
    name: list[str | None] = [_create_file(root) if world.rank == 0 else None]
    dist.broadcast_object_list(name, 0, group=group)
    if name[0] is None:
        return
    file = root / name[0]
    blind: list[str] = [""] * size
    dist.all_gather_object(blind, "" if appears(file) else _pod(world), group=group)
    if world.rank == 0:
        file.unlink(missing_ok=True)
    if found := list(dict.fromkeys(filter(None, blind))):
        others = f" and {len(found) - _NAMED} others" if len(found) > _NAMED else ""
        raise ConfigError(
            f"spec.checkpoint: {', '.join(found[:_NAMED])}{others} cannot see the files of worker 0 in {root}; use one "
            "volume for all workers (a claim with accessModes: [ReadWriteMany]), or spec.checkpoint.url"
        )


def _create_file(root: Path) -> str | None:
    """Create a file of a new name, which no node can have cached as missing; None if the volume is full."""
    name = f".shared-{uuid.uuid4().hex}"
    try:
        (root / name).touch()
    except OSError as error:
        log.logger.warning("not checked whether all workers have the same volume: %s: %s", root, error.strerror)
        return None
    return name


def appears(file: Path) -> bool:
    """Return whether a file exists, or appears in time."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _pod(world: World) -> str:
    return f"worker {world.rank // world.local_size}" if world.rank < world.size else "the parameter server"
