"""Leases on a shared volume: at most one process does a piece of work, and a process that ended loses it.

A lease is a file that exactly one process can create (O_EXCL, which NFS supports since version 3). Its holder writes to
it again and again; a lease without a new heartbeat for STALE_SECONDS may be taken over. In a race of two processes
that take it over, both may hold it for a moment: the work must have the same result however often it is done, and
appear by an atomic rename. The clocks of machines are not compared.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""Longer than an NFS client may show an old state of a file (acregmax, 60 s)."""


class Leases:
    """The leases of one process, with a thread that writes their heartbeats while any is held."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        for path in list(self._held):
            self.release(path)

    def acquire(self, path: Path) -> bool:
        """Return whether this process holds the lease now; it does not wait.

        Raises:
            OSError: the volume fails.
        """
        if self._create(path):
            return True
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return self._create(path)
        with self._lock:
            if path in self._held:
                return False
            before, since = self._seen.get(path, (None, 0.0))
            # It has a new heartbeat, or is seen for the first time; then it may still be empty.
            if content != before:
                since = self._clock()
                self._seen[path] = (content, since)
        if self._clock() - since < STALE_SECONDS and not _has_ended(content):
            return False
        # Of several processes that take it over, the rename succeeds in one.
        stale = path.with_name(f"{path.name}.{uuid.uuid4().hex}.stale")
        with suppress(FileNotFoundError):
            path.rename(stale)
            stale.unlink()
        return self._create(path)

    def release(self, path: Path) -> None:
        """Give a lease back."""
        with self._lock:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        try:
            with path.open("xb") as file:
                file.write(self._content())
        except FileExistsError:
            return False
        with self._lock:
            self._held.add(path)
        return True

    def _content(self) -> bytes:
        return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "beat": self._beats}).encode()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            self._beats += 1
            with self._lock:
                for path in self._held:
                    # A volume that fails for a moment costs a heartbeat. The file is not created again.
                    with suppress(OSError), path.open("r+b") as file:
                        file.write(self._content())


def _has_ended(content: bytes) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    try:
        holder = json.loads(content)
        host, process = holder["host"], int(holder["process"])
    except (ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
