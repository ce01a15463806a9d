"""Tensors to and from a checkpoint, through torch.distributed.checkpoint, which fits them to any layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from trainyard_trainer.checkpoint.writer import CheckpointWriter
from trainyard_trainer.optim.state import Shape, Tensors

FAILURES = (CheckpointException, OSError)
"""What the storage may answer to a save. A ConnectionError is none: the process that saves has died."""


def saved_shapes(folder: Path) -> dict[str, Shape]:
    """Names and whole shapes of the tensors in a checkpoint."""
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in saved.items() if hasattr(entry, "size")}


def load(folder: Path, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Fill tensors in place, each rank its parts. All ranks of the group must call it; None: this process alone."""
    state_dict_loader.load(
        dict(tensors), storage_reader=FileSystemReader(folder), process_group=group, no_dist=group is None
    )


def save(writer: CheckpointWriter, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Write tensors, while the caller waits.

    Raises:
        FAILURES: the storage refuses, on any rank.
    """
    state_dict_saver.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def _nested(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The same under the first part of each name.

    Names on disk are the same, since torch joins them again, in the process that saves. But it handles each entry of
    the dictionary that it is given by itself, in the thread that trains: of 200 tensors that is half of the stall.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    return parts


class BackgroundSave:
    """Writes in a process of its own, which is started with the first save and stays."""

    def __init__(self, device: torch.device, group: dist.ProcessGroup) -> None:
        cuda = device.type == "cuda"
        # The copy is made by another thread; shared memory takes it to the other process.
        options = StagingOptions(cuda, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=cuda)
        self._stager = DefaultStager(options)
        self._group = group

    def start(self, writer: CheckpointWriter, tensors: Mapping[str, Any]) -> AsyncSaveResponse:
        """Begin. The tensors must not change until `staging_completion`; `upload_completion` ends it."""
        response = state_dict_saver.async_save(
            _nested(tensors),
            storage_writer=writer,
            process_group=self._group,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        return response
