"""The checkpoints of a job on disk: which there are, whether they are whole, and which go.

    CHECKPOINTS/step-00000100/            complete: it got its name last
        manifest.json                     what it is of, and size and checksum of each file
        .metadata, __0_0.distcp, ...      as torch.distributed.checkpoint writes them
    CHECKPOINTS/step-00000200.partial/    being written, or left behind by an attempt that died

Free of torch.
"""

import json
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
_COMPLETE = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileChecksum:
    """Size and checksum of a file."""

    bytes: int
    crc32: int


def partial_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after a step is written."""
    return root / f"step-{step:08d}{_PARTIAL}"


def complete_folder(root: Path, step: int) -> Path:
    """Where it is once it is complete."""
    return root / f"step-{step:08d}"


def complete_steps(root: Path) -> list[int]:
    """Steps of all checkpoints that were completed, the newest first."""
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    return sorted((int(found[1]) for name in names if (found := _COMPLETE.fullmatch(name))), reverse=True)


def commit(partial: Path, manifest: dict[str, Any]) -> None:
    """Make a checkpoint complete whose files have been written and synced, all at once.

    Raises:
        OSError: the storage refuses.
    """
    path = partial / MANIFEST
    with path.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    target = partial.with_name(partial.name.removesuffix(_PARTIAL))
    if target.exists():  # one of an earlier attempt, that was found to be damaged
        shutil.rmtree(target)
    partial.rename(target)
    _sync_folder(target.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a complete checkpoint says of itself.

    Raises:
        OSError, ValueError: it is damaged.
    """
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest["format"] != FORMAT:
        raise ValueError(f"{folder}: format {manifest['format']} is not known to this version of the trainer")
    return manifest


def size(folder: Path) -> int:
    """Bytes of all files of a complete checkpoint, as its manifest says.

    Raises:
        OSError, ValueError: it is damaged.
    """
    return sum(file["bytes"] for file in read_manifest(folder)["files"].values())


def file_checksum(path: Path) -> FileChecksum:
    """Read a file and sum it up."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return FileChecksum(size, crc)


def find_damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a complete checkpoint, as far as a share of its files shows; None if nothing is.

    Ranks divide the files among them, so that a large checkpoint is read once.
    """
    try:
        files = read_manifest(folder)["files"]
        for name in sorted(files)[share::shares]:
            found, expected = file_checksum(folder / name), FileChecksum(**files[name])
            if found.bytes != expected.bytes:
                return f"{folder / name} has {found.bytes} bytes and should have {expected.bytes}"
            if found != expected:
                return f"{folder / name} does not have its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder} cannot be read: {error}"
    return None


def remove_partial(root: Path) -> None:
    """Remove what was never completed. Nobody may be writing."""
    for path in root.glob(f"*{_PARTIAL}") if root.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def remove_old(root: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest."""
    for step in complete_steps(root)[keep:]:
        # First it ceases to be complete: a removal that is cut short must not leave half of one.
        folder = complete_folder(root, step)
        doomed = partial_folder(root, step)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
