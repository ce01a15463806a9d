"""Writes a checkpoint through torch.distributed.checkpoint, with a checksum for each file, and commits it in the end.

It runs in the training process or in the process that saves in the background, to which it is sent.
"""

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.checkpoint.catalog import FORMAT, FileChecksum

_SUM = "checksum of "


class CheckpointWriter(FileSystemWriter):
    """A folder that becomes a complete checkpoint only once every rank's files are on the disk."""

    def __init__(self, root: Path, step: int, about: dict[str, Any]) -> None:
        """`about`: what the manifest says besides; it must be JSON."""
        super().__init__(catalog.partial_folder(root, step), sync_files=True)
        self._about = about

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files; their checksums travel to the coordinator as if they were results."""
        results: list[WriteResult] = super().write_data(plan, planner).value()
        for name in sorted({result.storage_data.relative_path for result in results}):
            found = catalog.file_checksum(Path(self.path) / name)
            results.append(WriteResult(MetadataIndex(_SUM + name), found.bytes, found))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when all others are done."""
        sums: dict[str, FileChecksum] = {}
        written: list[list[WriteResult]] = []
        for of_rank in results:
            sums |= {r.index.fqn.removeprefix(_SUM): r.storage_data for r in of_rank if _is_sum(r)}
            written.append([r for r in of_rank if not _is_sum(r)])
        super().finish(metadata, written)
        folder = Path(self.path)
        sums[".metadata"] = catalog.file_checksum(folder / ".metadata")
        files = {name: vars(found) for name, found in sums.items()}
        catalog.commit(folder, {"format": FORMAT, **self._about, "files": files})


def _is_sum(result: WriteResult) -> bool:
    return result.index.fqn.startswith(_SUM)
