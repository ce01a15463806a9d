"""The checkpoints of a job on disk: which exist, whether they are intact, and which are removed.

    CHECKPOINTS/step-00000100/            complete: it got this name last
        manifest.json                     see `checkpoint.manifest`
        .metadata, __0_0.distcp, ...      as torch.distributed.checkpoint writes them
    CHECKPOINTS/step-00000200.partial/    being written or removed, or left behind by an attempt that died

Free of torch.
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path

from trainyard_trainer.checkpoint.manifest import MANIFEST, FileChecksum, Manifest
from trainyard_trainer.runtime.errors import ConfigError

_COMPLETE = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial"
_CHUNK = 1 << 22
"""Bytes read at a time for a checksum."""


def partial_folder(root: Path, step: int) -> Path:
    """Return the folder in which the checkpoint of a step is written."""
    return root / f"step-{step:08d}{_PARTIAL}"


def complete_folder(root: Path, step: int) -> Path:
    """Return the folder of the complete checkpoint of a step."""
    return root / f"step-{step:08d}"


def complete_steps(root: Path) -> list[int]:
    """Return the steps of all complete checkpoints, the newest first."""
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    return sorted((int(found[1]) for name in names if (found := _COMPLETE.fullmatch(name))), reverse=True)


def commit(partial: Path, manifest: Manifest) -> None:
    """Make a checkpoint complete, atomically, once its files have been written and synced.

    Raises:
        OSError: the storage refuses.
    """
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


def size(folder: Path) -> int:
    """Return the size in bytes of all files of a complete checkpoint, as its manifest has it.

    Raises:
        OSError, ValueError: the manifest is damaged.
    """
    return sum(file.bytes for file in Manifest.read(folder).files.values())


def free_space(root: Path) -> str:
    """Return in words how many bytes are free on the volume, for an error message."""
    try:
        return f"{shutil.disk_usage(root).free / 1e6:,.0f} MB are free on the volume"
    except OSError as error:
        return f"the volume does not respond: {error.strerror}"


def file_checksum(path: Path, *, digest: bool = False) -> FileChecksum:
    """Read a file and return its size and checksum, with `digest` also its SHA-256."""
    size = crc = 0
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if digest:
                sha256.update(chunk)
    return FileChecksum(size, crc, sha256.hexdigest() if digest else None)


def find_damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Return what is wrong with a complete checkpoint; None if nothing is.

    Ranks divide the files among them, so that a large checkpoint is read once: this one reads every `shares`-th
    file, beginning with number `share`.

    Raises:
        ConfigError: a newer version of the trainer has written the checkpoint.
    """
    try:
        files = Manifest.read(folder).files
        for name in sorted(files)[share::shares]:
            found, expected = file_checksum(folder / name), files[name]
            if found.bytes != expected.bytes:
                return f"{folder / name} has {found.bytes} bytes instead of {expected.bytes}"
            if found.crc32 != expected.crc32:
                return f"{folder / name} has a wrong checksum"
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {error}"
    return None


def remove_partial(root: Path) -> None:
    """Remove all checkpoints that are not complete. No process may be writing one."""
    for path in root.glob(f"*{_PARTIAL}") if root.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def remove_old(root: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep`."""
    for step in complete_steps(root)[keep:]:
        # Rename first: a removal that is interrupted must not leave a complete checkpoint without some of its files.
        partial = partial_folder(root, step)
        complete_folder(root, step).rename(partial)
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
