"""A checkpoint in the background while the device still works on the update: it must hold the state after it.

    python -m tests.bench.gpu_check.torn_state FOLDER MIB

Prints, as JSON, the values that were copied: by the trainer's stager; by torch's own, which does not wait for the
update; and by a bare copy on a stream of its own. If the last two have the right values as well, nothing was at stake.
"""

import json
import os
import sys
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager

from trainyard_trainer.checkpoint import storage
from trainyard_trainer.checkpoint.storage import BackgroundSave
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.runtime.world import World

TENSORS = 8
SLEEP_CYCLES, SLEEPS = 2_000_000_000, 5
"""About a second of a GPU, and how often: the update waits behind it while the host continues."""
COMPLETE = [1.0]
"""The values after the update: all tensors have them, and none of the update that follows."""


def main(folder: Path, mib: int) -> None:
    """Queue an update behind a long computation, begin to copy at once, in three ways, and print what was copied."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    world = World.from_environment()
    world.init_process_group(saves=True)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    assert world.control is not None
    values = mib * 2**20 // 4 // TENSORS
    found = {
        "ordered": saved_values(BackgroundSave(world.device, world.control), folder / "ordered", values, world.device),
        "torch": saved_values(unordered(world), folder / "torch", values, world.device),
        "bare": copied_values(values, world.device),
    }
    print(json.dumps(found))
    dist.destroy_process_group()


def unordered(world: World) -> BackgroundSave:
    """Return a save in the background whose copies do not wait for the update, as torch's stager is by itself."""
    assert world.control is not None
    background = BackgroundSave(world.device, world.control)
    background._stager = DefaultStager(background._stager._config)
    return background


def saved_values(background: BackgroundSave, folder: Path, values: int, device: torch.device) -> list[float]:
    """Return the different values in a checkpoint that is begun while the update of zeros to ones is queued."""
    tensors = {f"layer.{n}": torch.zeros(values, device=device) for n in range(TENSORS)}
    # The first save starts the process, and allocates the memory that is shared with it.
    background.start(storage_writer(folder / "first"), tensors).upload_completion.result()
    queue_update(tensors)
    response = background.start(storage_writer(folder / "second"), tensors)
    response.staging_completion.result()
    # The next update, which must not be in the checkpoint either.
    for tensor in tensors.values():
        tensor.add_(1)
    response.upload_completion.result()
    saved = {name: torch.empty(values) for name in tensors}
    storage.load(folder / "second", saved, None)
    return different_values(saved)


def copied_values(values: int, device: torch.device) -> list[float]:
    """Return the different values of a copy to pinned memory that is begun while the update is queued."""
    tensors = {f"layer.{n}": torch.zeros(values, device=device) for n in range(TENSORS)}
    on_gpu = device.type == "cuda"
    copies = {name: torch.empty(values, pin_memory=on_gpu) for name in tensors}
    stream = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]
    queue_update(tensors)
    with torch.cuda.stream(stream):
        for name, copy in copies.items():
            copy.copy_(tensors[name], non_blocking=True)
    if stream is not None:
        stream.synchronize()
    return different_values(copies)


def queue_update(tensors: dict[str, Tensor]) -> None:
    """Add 1 to tensors; a GPU does it when it has done something else for a while."""
    if next(iter(tensors.values())).is_cuda:
        torch.cuda.synchronize()
        for _ in range(SLEEPS):
            torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    for tensor in tensors.values():
        tensor.add_(1)


def different_values(tensors: dict[str, Tensor]) -> list[float]:
    """Return the smallest and the largest value of each tensor, each once, in ascending order."""
    return sorted({float(v) for tensor in tensors.values() for v in (tensor.min(), tensor.max())})


def storage_writer(folder: Path) -> CheckpointWriter:
    """Return torch's writer, without manifest and names: only the copy is in question here."""
    return cast(CheckpointWriter, FileSystemWriter(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
