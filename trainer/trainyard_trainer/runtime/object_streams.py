"""How this process reaches object stores: through pyarrow.fs, with errors that say what to do about them.

s3:// is any store with the interface of S3, gs:// Google Cloud Storage, az:// Azure Blob Storage. Credentials come from
the environment as the providers' own tools read them, never from the URL. pyarrow is imported when the first object is
used. Free of torch.
"""

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

ATTEMPTS = 5
"""Attempts of one request before it has failed; the pauses between them grow to a few seconds."""
CONNECT_SECONDS, REQUEST_SECONDS = 5.0, 60.0
_REFUSALS = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE|INVALID_CLIENT_TOKEN|MISSING_AUTHENTICATION"
    r"|EXPIRED_TOKEN|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|AuthenticationFailed"
    r"|AuthorizationFailure|AuthorizationPermission|ContainerNotFound|HTTP (status )?(301|401|403)\b"
)
"""What errors of the stores hold that no repetition will change."""
_UNREMARKABLE = re.compile(r"\s*\(?Request ID:\s*[^)\s]*\)?| error_info=.*|\s+", re.DOTALL)
"""What they hold besides, for the makers of the store."""


class ObjectStoreError(OSError):
    """A request to an object store has failed, although it was repeated. `strerror` says why in one line."""


class ObjectStoreUnavailable(ObjectStoreError):
    """The store does not answer, or not in time; it may later, so a restart may help."""


class ObjectStoreRefused(ObjectStoreError):
    """The store refuses: no such bucket, no permission, wrong credentials. Only the user can change that."""


class Reader(io.RawIOBase):
    """A file of pyarrow as a raw file of Python, whose errors name the object."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url
        self._size = int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._size}[whence]
        return int(self._file.seek(max(0, start + offset)))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        # pyarrow refuses to read behind the end, where a file of Python reads nothing.
        wanted = min(len(buffer), self._size - self._file.tell())
        if wanted <= 0:
            return 0
        with translated(self._url):
            return int(self._file.readinto(memoryview(buffer)[:wanted]))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Writer(io.RawIOBase):
    """A stream of pyarrow as a file of Python. The object appears when it is closed."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream, self._url = stream, url

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        with translated(self._url, writes=True):
            self._stream.write(content)
        return memoryview(content).nbytes

    def tell(self) -> int:
        return int(self._stream.tell())

    def flush(self) -> None:
        """Do nothing: the object appears when it is closed."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            with translated(self._url, writes=True):
                self._stream.close()


@cache
def file_system_of(scheme: str) -> Any:
    from pyarrow import fs

    match scheme:
        case "s3":
            endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
            return fs.S3FileSystem(
                region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
                endpoint_override=endpoint.netloc or None,
                scheme=endpoint.scheme or "https",
                connect_timeout=CONNECT_SECONDS,
                request_timeout=REQUEST_SECONDS,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
                # A small object is one request, which creates it or does not.
                allow_delayed_open=True,
            )
        case "gs":
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_SECONDS))
        case "az":
            if not (account := os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")):
                raise ObjectStoreRefused(errno.EACCES, "AZURE_STORAGE_ACCOUNT_NAME is not set")
            key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY")
            return fs.AzureFileSystem(account_name=account, account_key=key)
    raise AssertionError(f"admission demands s3, gs or az, not {scheme}")


def file_system(url: str) -> Any:
    """Return the file system of pyarrow for a URL; this process has one for each scheme."""
    return file_system_of(url.partition("://")[0])


@contextmanager
def translated(url: str, *, writes: bool = False) -> Iterator[None]:
    """Turn an error of pyarrow into one that says in one line whether the store refuses or is unavailable.

    `writes`: what is not found is the bucket, since no object has to exist before it is written.
    """
    try:
        yield
    except ObjectStoreError:
        raise
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        if absent and not writes:
            raise
        reason = _UNREMARKABLE.sub(" ", error.strerror or str(error)).strip()
        if absent or _REFUSALS.search(reason):
            raise ObjectStoreRefused(errno.EACCES, reason, url) from None
        raise ObjectStoreUnavailable(errno.EREMOTEIO, reason, url) from None
