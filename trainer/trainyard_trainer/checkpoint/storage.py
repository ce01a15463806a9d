"""Saves and loads tensors through torch.distributed.checkpoint, which reshards them for any layout."""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.tensor import DTensor
from torch.futures import Future

from trainyard_trainer.checkpoint.metadata import METADATA, read_metadata
from trainyard_trainer.checkpoint.writer import CheckpointFiles, CheckpointWriter
from trainyard_trainer.optim.state import Shape, Tensors, is_optimizer_state
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.torch_internals import shared_memory_stager

FAILURES = (CheckpointException, OSError)
"""Errors of the storage. A ConnectionError is not one, though an OSError: the background process has died."""


class CheckpointReader(FileSystemReader):
    """A storage reader that runs no code of a checkpoint: torch loads tensors with weights_only=True by itself.

    It holds one saved tensor, or part of one, besides those that it fills: torch reads it completely, and copies from
    it what this rank needs.
    """

    def __init__(self, folder: Location) -> None:
        super().__init__(str(folder))
        self._folder = folder
        self._files = _OpenFile()
        self.fs = cast(Any, self._files)
        self.path = cast(Any, folder)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of a plan one after the other; torch alone would hold one while it reads the next."""
        done: Future[None] = Future()
        done.set_result(None)
        with self._files:
            for item in sorted(plan.items, key=lambda item: str(self.storage_data[item.storage_index].relative_path)):
                done = super().read_data(LoadPlan([item]), planner)
        return done

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index of the checkpoint.

        Raises:
            ConfigError: it holds something that could run code.
            ValueError: it is damaged.
        """
        with (self._folder / METADATA).open("rb") as file:
            metadata = read_metadata(file, str(self._folder / METADATA))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _OpenFile(CheckpointFiles):
    """The files of a checkpoint, of which the one that was read last stays open until the end of a context."""

    def __init__(self) -> None:
        super().__init__()
        self._path: Location | None = None
        self._file: BinaryIO | None = None

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[Any, None, None]:
        """Open a file to read it, unless it is open."""
        if self._file is None or self._path != path:
            self.close()
            self._file, self._path = path.open(mode), path
        yield self._file

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def saved_shapes(folder: Location) -> dict[str, Shape]:
    """Return the full shapes of the tensors in a checkpoint, by name.

    Raises:
        ConfigError: the checkpoint holds something that could run code.
        ValueError: it is damaged.
    """
    saved = CheckpointReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}


def load(folder: Location, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Fill tensors in place; each rank reads its parts. All ranks of the group call it; None: this process alone.

    State of the optimizer that the checkpoint does not have keeps its values, for example that of a momentum which has
    been turned on since.
    """
    saved = saved_shapes(folder)
    wanted = {name: tensor for name, tensor in tensors.items() if name in saved or not is_optimizer_state(name)}
    state_dict_loader.load(wanted, storage_reader=CheckpointReader(folder), process_group=group, no_dist=group is None)


def save(writer: CheckpointWriter, tensors: Tensors, group: dist.ProcessGroup | None) -> None:
    """Write tensors, and wait until the checkpoint is complete. All ranks of `group` call it; None: one process.

    Raises:
        FAILURES: the storage fails, on any rank.
    """
    state_dict_saver.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def local_bytes(tensors: Tensors) -> int:
    """Return the bytes of this rank's parts of the tensors."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors.values())
    return sum(t.numel() * t.element_size() for t in local if isinstance(t, torch.Tensor))


def free_shared_memory() -> int | None:
    """Return the bytes that are free in /dev/shm; None where there is none."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _nested(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group tensors by the first part of their names.

    Names on disk stay the same, since torch joins them again in the background process. But torch handles each entry
    of the dictionary separately, in the thread that trains, which for 200 tensors is half of the stall.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = tensor
    return parts


class BackgroundSave:
    """Writes checkpoints in a background process, which starts with the first save and stays."""

    def __init__(self, device: torch.device, group: dist.ProcessGroup) -> None:
        self._stager = shared_memory_stager(cuda=device.type == "cuda")
        self._group = group

    def start(self, writer: CheckpointWriter, tensors: Mapping[str, Any]) -> AsyncSaveResponse:
        """Begin to write. The tensors must not change before `staging_completion`; `upload_completion` is the end."""
        response = state_dict_saver.async_save(
            _nested(tensors),
            storage_writer=writer,
            process_group=self._group,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        return response
