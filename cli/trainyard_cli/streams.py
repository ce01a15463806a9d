"""Standard output that cannot be written, or that cannot encode a character: one line instead of a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from trainyard_cli.exit_codes import EXIT_FAILED


@contextmanager
def guard_streams() -> Iterator[None]:
    """Replace characters that the streams cannot encode, and end with one line if standard output cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        # Other errors pass: standard output failed only if it still cannot be flushed.
        if (reason := _flush_error()) is None:
            raise
        # Python flushes once more when it exits, and would print a second message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `| head` does
            print(f"error: standard output cannot be written: {reason}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _flush_error() -> str | None:
    try:
        sys.stdout.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None
