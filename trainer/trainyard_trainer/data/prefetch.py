"""Items that a thread prepares ahead of the thread that uses them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Yields the items of an iterator in order, a number of which are ready in advance.

    The thread starts with the first item that is asked for, and ends with the iterator or when it is closed. An error
    of the iterator is raised where its item is asked for.
    """

    def __init__(self, items: Iterator[T], depth: int, begin: Callable[[], None] | None = None) -> None:
        """Prepare to read ahead.

        Args:
            items: the items; only the thread uses it.
            depth: how many items may be ready.
            begin: called in the thread first.
        """
        self._items, self._begin = items, begin
        self._ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill, name="data", daemon=True)
            self._thread.start()
        item = self._ready.get()
        if isinstance(item, tuple):
            return item[0]
        # The end and an error stay, for whatever asks again.
        self._ready.put(item)
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """End the thread; what is ready is dropped."""
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            # The thread may wait for a free place.
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _fill(self) -> None:
        last: BaseException | None = None
        try:
            if self._begin is not None:
                self._begin()
            for item in self._items:
                self._ready.put((item,))
                if self._closed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread that asks for the item)
            last = error
        if not self._closed.is_set():
            self._ready.put(last)
