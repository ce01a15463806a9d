"""Writes a checkpoint through torch.distributed.checkpoint, with a checksum for each file, and commits it at the end.

It runs in the training process, or it is sent to the background process and runs there.
"""

from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.manifest import FileChecksum, Manifest

_CHECKSUM = "checksum of "
"""Prefix of the write results that carry the checksum of a file."""


class CheckpointWriter(FileSystemWriter):
    """A storage writer whose folder becomes a complete checkpoint once the files of all ranks are on disk."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        """`manifest`: what the checkpoint belongs to; the checksums of its files are added when they are written."""
        super().__init__(catalog.partial_folder(root, manifest.step), sync_files=True)
        self._manifest = manifest

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files, and send their checksums to the coordinator as additional write results."""
        results: list[WriteResult] = super().write_data(plan, planner).value()
        for name in sorted({result.storage_data.relative_path for result in results}):
            checksum = catalog.file_checksum(Path(self.path) / name, digest=True)
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
        folder = Path(self.path)
        files[".metadata"] = catalog.file_checksum(folder / ".metadata", digest=True)
        catalog.commit(folder, self._manifest.replace(files=files))


def _is_checksum(result: WriteResult) -> bool:
    return result.index.fqn.startswith(_CHECKSUM)
