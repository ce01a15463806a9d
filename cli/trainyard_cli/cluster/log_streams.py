"""Several logs read at once."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread


def merge_lines(sources: Sequence[Iterator[str]]) -> Iterator[str]:
    """Yield the lines of all sources in the order in which they arrive, until every source has ended."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read(source: Iterator[str]) -> None:
        try:
            for line in source:
                lines.put(line)
        finally:
            lines.put(None)

    for source in sources:
        # Daemon threads, so that Ctrl-C need not wait for each of them to read something.
        Thread(target=read, args=(source,), daemon=True).start()
    open_sources = len(sources)
    while open_sources:
        line = lines.get()
        if line is None:
            open_sources -= 1
        else:
            yield line
