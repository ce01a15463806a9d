"""A checkpoint in the background while the device still works on the update: it must hold the state after it.

    python -m tests.bench.gpu_check.torn_state FOLDER MIB

Prints the values that the checkpoint has, as JSON.
"""

import json
import os
import sys
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from trainyard_trainer.checkpoint import storage
from trainyard_trainer.checkpoint.storage import BackgroundSave
from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.runtime.world import World

TENSORS = 8
SLEEP_CYCLES = 2_000_000_000
"""About a second of a GPU: the update waits behind it while the host continues."""


def main(folder: Path, mib: int) -> None:
    """Queue an update behind a long computation, begin to save at once, and read what was saved."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    world = World.from_environment()
    world.init_process_group(saves=True)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    assert world.control is not None
    values = mib * 2**20 // 4 // TENSORS
    tensors = {f"layer.{n}": torch.zeros(values, device=world.device) for n in range(TENSORS)}
    background = BackgroundSave(world.device, world.control)
    # The first save starts the process, and allocates the memory that is shared with it.
    background.start(storage_writer(folder / "first"), tensors).upload_completion.result()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    for tensor in tensors.values():
        tensor.add_(1)
    response = background.start(storage_writer(folder / "second"), tensors)
    response.staging_completion.result()
    # The next update, which must not be in the checkpoint either.
    for tensor in tensors.values():
        tensor.add_(1)
    response.upload_completion.result()
    saved = {name: torch.empty(values) for name in tensors}
    storage.load(folder / "second", saved, None)
    print(json.dumps(sorted({float(v) for t in saved.values() for v in (t.min(), t.max())})))
    dist.destroy_process_group()


def storage_writer(folder: Path) -> CheckpointWriter:
    """Return torch's writer, without manifest and names: only the copy is in question here."""
    return cast(CheckpointWriter, FileSystemWriter(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
