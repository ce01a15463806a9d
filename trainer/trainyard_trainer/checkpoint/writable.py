"""Checks that a run can write to its folders, before it trains for hours and then cannot save."""

import errno
import os
import tempfile
import time
from pathlib import Path

from trainyard_trainer.checkpoint import catalog
from trainyard_trainer.runtime import log
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import (
    Location,
    ObjectPath,
    ObjectStoreRefused,
    ObjectStoreUnavailable,
)

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""Errors of a volume on which no file can be created, after a restart either."""
STORE_SECONDS = 600.0
"""How long the start of an attempt waits for an object store that does not answer."""
STORE_PAUSE_SECONDS = 5.0
"""Pause before it is tried again."""


def writable_root() -> Location:
    """Return the folder of the job on the checkpoint volume or in an object store; files can be created in it.

    Raises:
        ConfigError: it is not writable.
        OSError: the storage fails.
    """
    root = catalog.root_of_job()
    return check_writable(root, "spec.checkpoint.url" if isinstance(root, ObjectPath) else "spec.checkpoint")


def check_writable(folder: Location, field: str) -> Location:
    """Return a folder after it was checked that files can be created in it; `field` names it in errors."""
    if isinstance(folder, ObjectPath):
        _check_url(folder, field)
    else:
        _check_volume(folder, field)
    return folder


def _check_volume(folder: Path, field: str) -> None:
    """Make a folder if it does not exist, and check that files can be created in it.

    Raises:
        ConfigError: it is not writable; `field` is the field of the spec that names it.
        OSError: the storage fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder may be another user's, or the volume may be mounted read-only.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # A full volume costs the files that do not fit; an unavailable one may be back after a restart.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and folder.is_dir():
            return
        if error.errno not in _NOT_WRITABLE:
            raise
        raise ConfigError(
            f"{field}: {folder} cannot be written to ({error.strerror}); choose a volume that user {os.getuid()} may "
            "write to"
        ) from error


def _check_url(root: ObjectPath, field: str) -> None:
    """Check that objects can be created in a folder of an object store, listed and removed; wait for one that is down.

    Raises:
        ConfigError: the store refuses.
        ObjectStoreUnavailable: the store does not answer.
    """
    probe, began = root / f".writable-{os.environ.get('RANK', '0')}", time.monotonic()
    try:
        while True:
            try:
                probe.write_bytes(b"")
                root.is_dir()
                probe.unlink(missing_ok=True)
                return
            except ObjectStoreUnavailable as error:
                # Restarts are limited, and would be used up in the first minutes of an outage.
                if time.monotonic() - began > STORE_SECONDS:
                    raise
                log.logger.warning("the object store does not answer; it is tried again: %s", error.strerror)
                time.sleep(STORE_PAUSE_SECONDS)
    except ObjectStoreRefused as error:
        raise ConfigError(
            f"{field}: {root} cannot be used ({error.strerror}); correct the bucket, or the credentials "
            "and their permissions to get, put, list and delete objects"
        ) from error
