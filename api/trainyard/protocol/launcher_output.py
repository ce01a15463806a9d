"""The output of the processes of a launcher: copied to the launcher's own, and kept as far as a failure needs it.

Mounted into images of users together with `launcher.py`: standard library of Python 3.8 only. It needs no thread: the
kernel sends SIGIO when there is output, which ends the launcher's wait.
"""

from __future__ import annotations

import contextlib
import os
import select

if __package__:
    from trainyard.protocol.launcher_port import signal_on_input
    from trainyard.protocol.log_tail import MAX_CHARACTERS
else:  # run as a program: see `launcher`
    from launcher_port import signal_on_input  # type: ignore[import-not-found, no-redef]
    from log_tail import MAX_CHARACTERS  # type: ignore[import-not-found, no-redef]

STDOUT, STDERR = 1, 2
_CHUNK = 65_536
"""Bytes read at a time: what a pipe holds."""


class OutputCopy:
    """A pipe that takes the place of a process's stdout or stderr. What it receives is copied to the launcher's."""

    def __init__(self, stream: int) -> None:
        """`stream`: `STDOUT` or `STDERR`."""
        self._stream = stream
        self._input, self.write_end = os.pipe()
        self._tail = b""
        signal_on_input(self._input)

    @property
    def text(self) -> str:
        """End of what was copied."""
        return self._tail.decode("utf-8", "replace")

    def copy(self) -> None:
        """Copy what has arrived."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._input, _CHUNK):
                self._tail = (self._tail + chunk)[-MAX_CHARACTERS:]
                _write(self._stream, chunk)

    def divert(self) -> None:
        """Let this process, forked by the launcher, write to the pipe."""
        os.dup2(self.write_end, self._stream)
        os.close(self.write_end)
        os.close(self._input)

    def close_write_end(self) -> None:
        """Close the launcher's own copy of the end that its processes write to."""
        os.close(self.write_end)

    def close(self) -> None:
        """Copy the rest, and close the pipe; a process that still writes to it receives SIGPIPE."""
        self.copy()
        os.close(self._input)


def _write(stream: int, data: bytes) -> None:
    """Write all of the data."""
    while data:
        try:
            data = data[os.write(stream, data) :]
        except BlockingIOError:  # another process has made the stream non-blocking
            select.select((), (stream,), ())
        except OSError:  # for example a full disk: the processes continue all the same
            return
