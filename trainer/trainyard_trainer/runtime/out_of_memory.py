"""What a rank leaves behind when its GPU has no memory left: an account in one line, and the allocator's snapshot."""

import os
from pathlib import Path

import torch

from trainyard.protocol import constants, launcher_protocol
from trainyard.resource.quantity import format_bytes
from trainyard_trainer.runtime.torch_internals import dump_memory_snapshot

FOLDER = "memory-snapshots"
"""Folder on the checkpoint volume."""


def explain(rank: int | None) -> str:
    """Return an account of the memory of this process's GPU; write a snapshot, which pytorch.org/memory_viz draws.

    The exception still refers to the frames that it has passed, so the tensors of the failed step are still there.
    """
    try:
        text = account()
    # CUDA may answer nothing any more.
    except (RuntimeError, AssertionError) as error:
        return f"the GPU gives no account of its memory: {error}"
    try:
        path = write_snapshot(rank)
    except (OSError, RuntimeError) as error:
        return f"{text}; no snapshot could be written: {error}"
    return text if path is None else f"{text}; snapshot: {path}"


def account() -> str:
    """Return who holds the memory of this process's GPU: tensors, the allocator, and all else."""
    free, total = torch.cuda.mem_get_info()
    held, peak, reserved = (
        torch.cuda.memory_allocated(),
        torch.cuda.max_memory_allocated(),
        torch.cuda.memory_reserved(),
    )
    return (
        f"of {format_bytes(total)} tensors hold {format_bytes(held)} (at most {format_bytes(peak)} so far), the "
        f"allocator keeps {format_bytes(reserved - held)} besides, CUDA, NCCL and other processes "
        f"{format_bytes(total - free - reserved)}"
    )


def write_snapshot(rank: int | None) -> Path | None:
    """Write the state of the allocator to the checkpoint volume, and return the path; None without a volume."""
    root = os.environ.get(constants.ENV_CHECKPOINTS)
    if not root:
        return None
    folder = Path(root, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"attempt-{launcher_protocol.attempt_number()}-rank-{rank}.pickle"
    dump_memory_snapshot(path)
    return path
