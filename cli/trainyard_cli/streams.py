"""Standard output that cannot be written, or that cannot encode a character: one line instead of a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from trainyard_cli.exit_codes import EXIT_FAILED


class OutputError(Exception):
    """Standard output cannot be written."""


class _Output(FileIO):
    """Standard output, whose errors differ in type from those of all other files."""

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            BrokenPipeError: the reader has closed the pipe, as `| head` does.
            OutputError: any other error.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error.strerror or str(error)) from error


@contextmanager
def guard_streams() -> Iterator[None]:
    """Replace characters that the streams cannot encode, and end with one line if standard output cannot be written."""
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    if not isinstance(sys.stdout, TextIOWrapper):
        yield
        return
    original = sys.stdout
    raw = _Output(original.fileno(), "wb", closefd=False)
    encoding, interactive = original.encoding, original.isatty()
    sys.stdout = TextIOWrapper(BufferedWriter(raw), encoding, errors="replace", line_buffering=interactive)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OutputError, BrokenPipeError) as error:
        # What is still buffered would fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), raw.fileno())
        if isinstance(error, OutputError):
            print(f"error: standard output cannot be written: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    finally:
        sys.stdout = original
