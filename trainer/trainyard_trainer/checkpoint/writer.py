"""Writes a checkpoint through torch.distributed.checkpoint, with a checksum for each file, and commits it at the end.

It runs in the training process, or it is sent to the background process and runs there.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import FileChecksum, Manifest
from trainyard_trainer.checkpoint.metadata import METADATA
from trainyard_trainer.runtime.object_store import Location, ObjectPath

_CHECKSUM = "checksum of "
"""Prefix of the write results that carry the checksum of a file."""


class CheckpointFiles(FileSystemBase):
    """The files of a checkpoint for torch, on a volume or in an object store."""

    def __init__(self) -> None:
        self.checksums: dict[str, FileChecksum] = {}
        """Size and checksum of each file that was written, by name."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[Any, None, None]:
        """Open a file, "rb" or "wb"."""
        with path.open(mode) as file:
            if mode == "rb":
                yield file
                return
            stream = ChecksummedStream(file)
            yield stream
        self.checksums[path.name] = FileChecksum(stream.bytes, stream.crc32, stream.sha256.hexdigest())

    def concat_path(self, path: Any, suffix: str) -> Any:
        """Return a file of a folder."""
        return path / suffix

    def init_path(self, path: Any) -> Any:
        """Return the folder, which is a Location already."""
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        """Give a file its final name."""
        path.rename(new_path)
        self.checksums[new_path.name] = self.checksums.pop(path.name)

    def mkdir(self, path: Any) -> None:
        """Create the folder."""
        path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether torch may write to a folder, which is for a Location to say."""
        return bool(checkpoint_id)

    def exists(self, path: Any) -> bool:
        """Return whether a file exists."""
        return bool(path.exists())

    def rm_file(self, path: Any) -> None:
        """Remove a file."""
        path.unlink()


class ChecksummedStream:
    """A stream that is written to, with the size, the CRC-32 and the SHA-256 of what was written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.bytes = 0
        self.crc32 = 0
        self.sha256 = hashlib.sha256()
        self.tell: Callable[[], int] = file.tell
        self.flush: Callable[[], None] = file.flush
        self.fileno: Callable[[], int] = file.fileno
        self.close: Callable[[], None] = file.close

    def write(self, content: Any) -> int:
        """Write bytes completely."""
        self.bytes += memoryview(content).nbytes
        self.crc32 = zlib.crc32(content, self.crc32)
        self.sha256.update(content)
        return cast(int, self._file.write(content))


class CheckpointWriter(FileSystemWriter):
    """A storage writer whose folder becomes a complete checkpoint once the files of all ranks are on the storage."""

    def __init__(self, root: Location, manifest: Manifest) -> None:
        """`manifest`: what the checkpoint belongs to; the checksums of its files are added when they are written."""
        # There is nothing to sync in an object store, which has an object or does not.
        super().__init__(str(root), sync_files=not isinstance(root, ObjectPath))
        self.files = CheckpointFiles()
        self.fs = cast(Any, self.files)
        self._folder: Location = catalog.partial_folder(root, manifest.step)
        self.path = cast(Any, self._folder)
        self._manifest = manifest

    @property
    def checkpoint_id(self) -> str:
        """The folder, as it is noted in the index of the checkpoint."""
        return str(self._folder)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Prepare the folder; the other ranks write only after this."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if is_coordinator:
            catalog.begin(self._folder)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files, and send their checksums to the coordinator as additional write results."""
        results: list[WriteResult] = super().write_data(plan, planner).value()
        for name in sorted({result.storage_data.relative_path for result in results}):
            checksum = self.files.checksums[name]
            results.append(WriteResult(MetadataIndex(_CHECKSUM + name), checksum.bytes, checksum))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata and commit the checkpoint; runs on the coordinator, when all ranks have written."""
        files: dict[str, FileChecksum] = {}
        written: list[list[WriteResult]] = []
        for rank_results in results:
            files |= {r.index.fqn.removeprefix(_CHECKSUM): r.storage_data for r in rank_results if _is_checksum(r)}
            written.append([r for r in rank_results if not _is_checksum(r)])
        super().finish(metadata, written)
        files[METADATA] = self.files.checksums[METADATA]
        catalog.commit(self._folder, self._manifest.replace(files=files))


def _is_checksum(result: WriteResult) -> bool:
    return result.index.fqn.startswith(_CHECKSUM)
