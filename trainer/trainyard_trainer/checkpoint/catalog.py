"""The checkpoints of a job: which exist, whether they are intact, and which are removed.

    CHECKPOINTS/step-00000100/            complete: it got this name last
        manifest.json                     see `checkpoint.manifest`
        .metadata, __0_0.distcp, ...      as torch.distributed.checkpoint writes them
    CHECKPOINTS/step-00000200.partial/    being written or removed, or left behind by an attempt that died

An object store cannot rename. There the manifest makes a checkpoint complete: it is written last and removed first.

Free of torch.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from trainyard.protocol import constants
from trainyard_trainer.checkpoint.manifest import MANIFEST, FileChecksum, Manifest
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import (
    Location,
    ObjectPath,
    ObjectStatus,
    ObjectStoreError,
    statuses,
)

_COMPLETE = re.compile(r"step-(\d{8,})")
_WRITTEN_BY_RANK = re.compile(r"__(\d+)_\d+\.distcp")
"""Name of a file with tensors, as torch.distributed.checkpoint forms it."""
_PARTIAL = ".partial"
_CHUNK = 1 << 22
"""Bytes read at a time for a checksum."""
_Folder = TypeVar("_Folder", Path, ObjectPath, Location)


def root_of_job() -> Location:
    """Return the folder of the job's checkpoints, as the environment of a worker has it; it may not exist."""
    if url := os.environ.get(constants.ENV_CHECKPOINT_URL):
        return ObjectPath(url)
    return Path(os.environ.get(constants.ENV_CHECKPOINTS) or constants.CHECKPOINT_MOUNT)


def partial_folder(root: _Folder, step: int) -> _Folder:
    """Return the folder in which the checkpoint of a step is written."""
    return root / f"step-{step:08d}{'' if isinstance(root, ObjectPath) else _PARTIAL}"


def complete_folder(root: _Folder, step: int) -> _Folder:
    """Return the folder of the complete checkpoint of a step."""
    return root / f"step-{step:08d}"


def complete_steps(root: Location) -> list[int]:
    """Return the steps of all complete checkpoints, the newest first."""
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    steps = sorted((int(found[1]) for name in names if (found := _COMPLETE.fullmatch(name))), reverse=True)
    if isinstance(root, ObjectPath):
        return [step for step in steps if (complete_folder(root, step) / MANIFEST).is_file()]
    return steps


def begin(partial: Location) -> None:
    """Prepare to write a checkpoint, before any rank does.

    Raises:
        OSError: the storage refuses.
    """
    # A damaged checkpoint of an earlier attempt may have the same step; it is incomplete from now on.
    if isinstance(partial, ObjectPath):
        (partial / MANIFEST).unlink(missing_ok=True)


def commit(partial: Location, manifest: Manifest) -> None:
    """Make a checkpoint complete, atomically, once its files have been written and synced.

    Raises:
        OSError: the storage refuses, or the files of another rank are not there.
    """
    _check_sizes(partial, manifest)
    if isinstance(partial, ObjectPath):
        (partial / MANIFEST).write_bytes(json.dumps(manifest.content(), indent=1).encode())
        return
    with (partial / MANIFEST).open("w") as file:
        json.dump(manifest.content(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    target = partial.with_name(partial.name.removesuffix(_PARTIAL))
    # A damaged checkpoint of an earlier attempt may have the same step.
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    sync_folder(target.parent)


def _check_sizes(folder: Location, manifest: Manifest) -> None:
    """Check that all files are there: a rank on another node may have written to a volume of its own."""
    names = list(manifest.files)
    found: Sequence[ObjectStatus | os.stat_result | None]
    if isinstance(folder, ObjectPath):
        found = statuses([folder / name for name in names])
    else:
        found = [(folder / name).stat() if (folder / name).exists() else None for name in names]
    for name, status in zip(names, found, strict=True):
        expected = manifest.files[name].bytes
        if status is None or status.st_size != expected:
            what = "is missing" if status is None else f"has {status.st_size} bytes instead of {expected}"
            raise OSError(
                errno.EIO,
                f"{name} {what} where rank 0 looks for it; all workers must write to the same volume "
                "(accessModes: ReadWriteMany)",
            )


def size(folder: Location) -> int:
    """Return the size in bytes of all files of a complete checkpoint, as its manifest has it.

    Raises:
        OSError, ValueError: the manifest is damaged.
    """
    return sum(file.bytes for file in Manifest.read(folder).files.values())


def free_space(root: Location) -> str:
    """Return in words how many bytes are free on the volume, for an error message."""
    if isinstance(root, ObjectPath):
        return f"the folder is {root}"
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB are free on the volume"
    except OSError as error:
        return f"the volume does not respond: {error.strerror}"


def file_checksum(path: Location) -> FileChecksum:
    """Read a file and return its size and checksum."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return FileChecksum(size, crc)


def find_damage(folder: Location, share: int = 0, shares: int = 1) -> str | None:
    """Return what is wrong with a complete checkpoint; None if nothing is.

    Ranks divide the files among them: together they read the checkpoint once, and once more to load it. The second
    time it comes from the memory of the node (page cache), since a rank checks the files that it loads, as long as the
    layout is that of the run that wrote them. Checksums that are compared while loading would save this pass, but the
    ranks must agree on a checkpoint before one of them changes its state, and a rank of another layout loads parts of
    files, for which there are no checksums. docs/checkpoints.md has the cost.

    Args:
        folder: the checkpoint.
        share: number of this rank's share.
        shares: number of shares; 1: this process checks all files.

    Raises:
        ConfigError: a newer version of the trainer has written the checkpoint.
        ObjectStoreError: the object store refuses, or does not answer.
    """
    try:
        files = Manifest.read(folder).files
        for name in sorted(name for name in files if _share_of(name, shares) == share):
            found, expected = file_checksum(folder / name), files[name]
            if found.bytes != expected.bytes:
                return f"{folder / name} has {found.bytes} bytes instead of {expected.bytes}"
            if found.crc32 != expected.crc32:
                return f"{folder / name} has a wrong checksum"
    # A store that does not answer has damaged nothing.
    except (ConfigError, ObjectStoreError):
        raise
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {error}"
    return None


def _share_of(name: str, shares: int) -> int:
    """Return the share to which a file belongs: that of the rank which loads it, on the layout that wrote it."""
    found = _WRITTEN_BY_RANK.fullmatch(name)
    return 0 if found is None else int(found[1]) % shares


def remove_partial(root: Location) -> None:
    """Remove all checkpoints that are not complete. No process may be writing one."""
    if isinstance(root, ObjectPath):
        # What cannot be removed now is removed by the next attempt.
        with suppress(OSError):
            for folder in root.iterdir():
                if _COMPLETE.fullmatch(folder.name) and not (folder / MANIFEST).is_file():
                    folder.remove_folder()
        return
    for path in root.glob(f"*{_PARTIAL}") if root.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def remove_old(root: Location, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep`.

    Raises:
        OSError: the storage fails; what is left is removed the next time.
    """
    for step in complete_steps(root)[keep:]:
        # A removal that is interrupted must not leave a complete checkpoint without some of its files.
        if isinstance(root, ObjectPath):
            (complete_folder(root, step) / MANIFEST).unlink()
            complete_folder(root, step).remove_folder()
            continue
        partial = partial_folder(root, step)
        complete_folder(root, step).rename(partial)
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
