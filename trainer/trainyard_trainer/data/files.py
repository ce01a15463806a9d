"""The files behind a path of spec.trainer.data."""

import glob
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import (
    Location,
    ObjectPath,
    ObjectStoreUnavailable,
    location,
    statuses,
)

BUILTIN = "builtin:python-stdlib"
"""Stands for the path of the text that every trainer image contains."""

# Not hand-written code of the standard library: tests, generated tables, and packages of other projects.
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data", "_bundled"}
_SKIPPED_FILES = ("_sysconfigdata", "_sysconfig")


class FileStatus(NamedTuple):
    """What identifies the content of a file without reading it."""

    name: str
    """Path, relative to the folder that all files have in common."""
    size: int
    modified: int
    """Time of modification in nanoseconds since the epoch."""


def find_files(path: str, field: str, suffixes: tuple[str, ...] = ()) -> tuple[Location, ...]:
    """Return the files that a path stands for, sorted: itself, those of a folder, or those that match a pattern.

    Args:
        path: a file, a folder, or a pattern with *, ? or [.
        field: name of the field in errors.
        suffixes: of a folder or pattern, only files with one of these ends of their names; empty: all.

    Raises:
        ConfigError: there are none, or they cannot be listed.
        ObjectStoreUnavailable: the object store does not answer.
    """
    if path == BUILTIN:
        return tuple(_standard_library(Path(sysconfig.get_path("stdlib"))))
    place = location(path)
    files: tuple[Location, ...] | None
    try:
        files = _list_objects(place, suffixes) if isinstance(place, ObjectPath) else _list(place, suffixes)
    except OSError as error:
        raise unreadable(error.filename or path, field, error) from error
    if files is None:
        if isinstance(place, ObjectPath):
            raise ConfigError(f"{field}: there are no objects at {path}; correct the URL")
        raise ConfigError(
            f"{field}: {path} does not exist in the worker; mount it through spec.workers.template, or correct the path"
        )
    if not files:
        kind = f"no files that end with {' or '.join(suffixes)}" if suffixes else "no files"
        raise ConfigError(f"{field}: {path} holds {kind}; put the data there, or correct the path")
    return files


def describe(files: Sequence[Location], field: str) -> list[FileStatus]:
    """Return what identifies files.

    Raises:
        ConfigError: one of them cannot be read.
        ObjectStoreUnavailable: the object store does not answer.
    """
    names = relative_names(files)
    if objects := [path for path in files if isinstance(path, ObjectPath)]:
        try:
            known = statuses(objects)
        except OSError as error:
            raise unreadable(objects[0].parent, field, error) from error
        return [FileStatus(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, known, strict=True) if s is not None]
    found = []
    for path, name in zip(files, names, strict=True):
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, field, error) from error
        found.append(FileStatus(name, status.st_size, status.st_mtime_ns))
    return found


def relative_names(files: Sequence[Location]) -> list[str]:
    """Return the paths of files, relative to the folder that all have in common."""
    paths = [str(path).rpartition("://")[2] for path in files]
    root = os.path.commonpath([PurePosixPath(path).parent for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def unreadable(path: Location | str, field: str, error: OSError) -> ConfigError | ObjectStoreUnavailable:
    """Return the error of a file that cannot be read; that of a store which may answer later stays what it is."""
    if isinstance(error, ObjectStoreUnavailable):
        return error
    return ConfigError(f"{field}: {path} cannot be read in the worker ({error.strerror}); correct its permissions")


def _list(path: Path, suffixes: tuple[str, ...]) -> tuple[Path, ...] | None:
    """Return the files of a path; None if it does not exist."""
    # A pattern: its matches, and nothing below them.
    if glob.has_magic(str(path)) and not path.exists():
        # Path.glob matches hidden files, too.
        found = (Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
        return tuple(sorted(p for p in found if p.is_file() and _ends(p, suffixes)))
    # stat() says why a path cannot be reached, which exists() does not.
    try:
        path.stat()
    except FileNotFoundError:
        return None
    if path.is_file():
        return (path,)
    listed = []
    for folder, subfolders, names in os.walk(path, onerror=_raise, followlinks=True):
        # A mounted ConfigMap keeps hidden copies of its files.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        listed += [Path(folder, name) for name in names if not name.startswith(".")]
    # A broken link is listed, so that reading it names the file.
    return tuple(sorted(p for p in listed if _ends(p, suffixes) and (p.is_symlink() or p.is_file())))


def _list_objects(path: ObjectPath, suffixes: tuple[str, ...]) -> tuple[ObjectPath, ...] | None:
    """Return the objects of a URL, as `_list` does; None if there are none."""
    if glob.has_magic(str(path)) and not path.is_file():
        from fsspec.utils import glob_translate

        folder = path
        while glob.has_magic(str(folder)):
            folder = folder.parent
        pattern = re.compile(glob_translate(str(path)))
        return tuple(p for p in folder.files() if pattern.match(str(p)) and _ends(p, suffixes))
    if path.is_file():
        return (path,)
    found = list(path.files())
    if not found and not path.exists():
        return None
    depth = len(str(path))
    return tuple(p for p in found if "/." not in str(p)[depth:] and _ends(p, suffixes))


def _raise(error: OSError) -> None:
    raise error


def _ends(path: Location, suffixes: tuple[str, ...]) -> bool:
    return not suffixes or path.name.endswith(suffixes)


def _standard_library(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES):
                yield Path(folder, name)
