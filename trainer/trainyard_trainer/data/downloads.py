"""Objects of a store as files of this machine, for what has to be mapped into memory or is read by other libraries."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from trainyard.protocol.constants import ENV_CACHE
from trainyard_trainer.data.files import describe, find_files, relative_names, unreadable
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.object_store import ObjectPath, ObjectStoreError, location, statuses


def cache_folder() -> Path:
    """Return the folder for prepared data and downloads of this pod alone."""
    return Path(os.environ.get(ENV_CACHE) or Path(tempfile.gettempdir(), f"trainyard-{os.getuid()}"))


def local_path(path: str, field: str, suffixes: tuple[str, ...] = (), beside: tuple[str, ...] = ()) -> str:
    """Return the path of data on this machine: that of a volume as it is, objects after they have been downloaded.

    Args:
        path: a path, or the URL of an object, a folder, or a pattern.
        field: name of the field in errors.
        suffixes: of a folder or pattern, only objects with one of these ends of their names; empty: all.
        beside: names of other objects to be downloaded as well, each beside an object if it exists there. One that
            begins with a dot replaces the suffix.

    Returns:
        The path of the file for the URL of one object, else that of the folder.

    Raises:
        ConfigError: there is no such object, or the store refuses.
        ObjectStoreUnavailable: the store does not answer; a repetition continues with the objects that are missing.
    """
    where = location(path)
    if not isinstance(where, ObjectPath):
        return path
    return _downloaded(where, field, suffixes, beside)


@cache
def _downloaded(where: ObjectPath, field: str, suffixes: tuple[str, ...], beside: tuple[str, ...]) -> str:
    found = [p for p in find_files(str(where), field, suffixes) if isinstance(p, ObjectPath)]
    single = found == [where]
    wanted = {_beside(path, name) for path in found for name in beside} - set(found)
    try:
        more = [p for p, status in zip(sorted(wanted), statuses(sorted(wanted)), strict=True) if status is not None]
        folder = _fetch(sorted([*found, *more]), field)
    except ObjectStoreError as error:
        raise unreadable(where, field, error) from error
    return str(folder / where.name if single else folder)


def _beside(path: ObjectPath, name: str) -> ObjectPath:
    return path.with_suffix(name) if name.startswith(".") else path.with_name(name)


def _fetch(files: Sequence[ObjectPath], field: str) -> Path:
    """Download objects into a folder whose name depends on them, and return it. Files that are there already stay."""
    known = describe(files, field)
    identity = [str(files[0].parent), [list(status) for status in known]]
    folder = cache_folder() / "objects" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One rank of a pod downloads for all.
    with _locked(folder.with_suffix(".lock")):
        targets = [folder / name for name in relative_names(files)]
        missing = [(path, target) for path, target in zip(files, targets, strict=True) if not target.exists()]
        if missing:
            log.info(f"downloading {len(missing)} objects, {sum(s.size for s in known) / 1e6:,.1f} MB in all")
        for path, target in missing:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.download(target)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock of this machine; other processes of the pod wait for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
