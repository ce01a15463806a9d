"""Files in object stores, with the part of the interface of pathlib.Path that checkpoints and data need.

`location` returns a Path for a path and an ObjectPath for a URL, so that code which takes a Location works with both.
What differs: an object appears when it is closed, after an error perhaps with a part of its content, and cannot be
renamed; a folder is only a part of names. So what consists of several objects is complete when a last one says so.

Free of torch.
"""

import errno
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from trainyard.resource.urls import is_url
from trainyard_trainer.runtime.object_streams import (
    ObjectStoreError,
    ObjectStoreRefused,
    ObjectStoreUnavailable,
    Reader,
    Writer,
    file_system,
    translated,
)

__all__ = [
    "Location",
    "ObjectPath",
    "ObjectStatus",
    "ObjectStoreError",
    "ObjectStoreRefused",
    "ObjectStoreUnavailable",
    "location",
    "statuses",
]

BUFFER = 4 << 20
"""Bytes of one request when a file is read from its beginning on."""


class ObjectStatus(NamedTuple):
    """What identifies the content of an object, named as in os.stat_result."""

    st_size: int
    """Bytes."""
    st_mtime_ns: int
    """Time of modification in nanoseconds since the epoch."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """The URL of an object, or of all objects whose names begin with it and a slash, which are its folder."""

    url: str
    """Scheme, bucket and name, without a slash at the end."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self.url}/{name}")

    @property
    def _key(self) -> str:
        """Bucket and name, as pyarrow takes them."""
        return self.url.partition("://")[2]

    @property
    def name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self._key).name

    @property
    def parent(self) -> "ObjectPath":
        """The folder; of a bucket the bucket itself."""
        return ObjectPath(self.url.rpartition("/")[0]) if "/" in self._key else self

    def with_name(self, name: str) -> "ObjectPath":
        """Return another object in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "ObjectPath":
        """Return an object whose name has another suffix."""
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    # --- reading ---------------------------------------------------------------------------------------------------

    def stat(self) -> ObjectStatus:
        """Return size and time of modification.

        Raises:
            FileNotFoundError: there is no object of this name.
            ObjectStoreError: the store cannot be reached, or refuses.
        """
        (status,) = statuses([self])
        if status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url)
        return status

    def is_file(self) -> bool:
        """Return whether there is an object of this name."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Return whether there are objects below this name."""
        from pyarrow.fs import FileType

        return bool(self._info().type == FileType.Directory)

    def exists(self) -> bool:
        """Return whether there is an object of this name or below it."""
        from pyarrow.fs import FileType

        return bool(self._info().type != FileType.NotFound)

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what is in the folder, in sorted order."""
        yield from (self / PurePosixPath(entry.path).name for entry in self._list(recursive=False))

    def files(self) -> Iterator["ObjectPath"]:
        """Yield all objects of the folder and those below it, in sorted order."""
        scheme = self.url.partition("://")[0]
        yield from (ObjectPath(f"{scheme}://{entry.path}") for entry in self._list(recursive=True) if entry.is_file)

    def open_raw(self) -> Any:
        """Open the object as a file of pyarrow, which reads each range by a request of its own."""
        with translated(self.url):
            return file_system(self.url).open_input_file(self._key)

    def open(self, mode: str) -> BinaryIO:
        """Open the object as a binary file: "rb" reads ahead, "wb" makes it appear when it is closed."""
        if mode == "rb":
            return io.BufferedReader(Reader(self.open_raw(), self.url), BUFFER)
        assert mode == "wb", mode
        with translated(self.url, writes=True):
            return cast(
                BinaryIO, Writer(file_system(self.url).open_output_stream(self._key, compression=None), self.url)
            )

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode(encoding)

    def download(self, target: Path) -> None:
        """Copy the object to a file, which gets its name when it is complete."""
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with self.open("rb") as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, BUFFER)
            read, size = part.stat().st_size, self.stat().st_size
            if read != size:
                reason = f"{read} bytes were read, but it has {size} now: it has changed"
                raise ObjectStoreUnavailable(errno.EREMOTEIO, reason, self.url)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    # --- writing ---------------------------------------------------------------------------------------------------

    def write_bytes(self, content: bytes) -> None:
        """Create or replace the object; others see the old content or the new one."""
        with self.open("wb") as file:
            file.write(content)

    def upload(self, source: Path) -> None:
        """Create or replace the object with the content of a file."""
        with source.open("rb") as file, self.open("wb") as target:
            shutil.copyfileobj(file, target, BUFFER)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists when an object is in it."""

    def rename(self, target: "ObjectPath") -> None:
        """Copy the object to another name, and remove it."""
        with translated(self.url):
            file_system(self.url).move(self._key, target._key)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            with translated(self.url):
                file_system(self.url).delete_file(self._key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_folder(self) -> None:
        """Remove all objects of the folder. Nothing happens if there are none."""
        try:
            with translated(self.url):
                file_system(self.url).delete_dir(self._key)
        except FileNotFoundError:
            pass

    def _info(self) -> Any:
        with translated(self.url):
            return file_system(self.url).get_file_info(self._key)

    def _list(self, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        with translated(self.url):
            found = file_system(self.url).get_file_info(
                FileSelector(self._key, allow_not_found=True, recursive=recursive)
            )
        return sorted(found, key=lambda entry: str(entry.path))


Location = Path | ObjectPath
"""A file or folder: on a volume, or in an object store."""


def location(text: str) -> Location:
    """Return what a path or a URL names."""
    return ObjectPath(text.rstrip("/")) if is_url(text) else Path(text)


def statuses(paths: Sequence[ObjectPath]) -> list[ObjectStatus | None]:
    """Return size and time of modification of objects of one store, asked for side by side; None for one that is none.

    Raises:
        ObjectStoreError: the store cannot be reached, or refuses.
    """
    if not paths:
        return []
    with translated(paths[0].url):
        found = file_system(paths[0].url).get_file_info([path._key for path in paths])
    return [ObjectStatus(info.size, info.mtime_ns or 0) if info.is_file else None for info in found]
