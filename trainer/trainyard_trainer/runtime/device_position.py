"""Where a GPU is in the step, for the hang detection.

The host only queues work, so when ranks hang, the host of each of them is somewhere ahead, mostly at the first place
where it waits for its device: that says nothing about which rank the others wait for. So an event is recorded on the
stream of the computation whenever the host enters a phase, and a thread publishes the last event that has been reached.
An event costs about two microseconds, and no wait. In a process that is stopped the thread is so, too, while its GPU
completes what was queued: the time of the last look shows that what was published is out of date.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Position

POLL_SECONDS = 0.25
"""Time between two looks at the events: the hang detection needs a second and more."""
MAX_PENDING = 4096
"""Events that may be ahead of the device; of more the oldest are forgotten."""


class Event(Protocol):
    """A marker in the queue of a device, as torch.cuda.Event."""

    def record(self) -> None:
        """Put the marker behind all work that has been queued so far."""

    def query(self) -> bool:
        """Return whether the device has reached it."""


class DevicePosition:
    """Follows a device through the positions that its host has reached."""

    def __init__(self, make_event: Callable[[], Event], publish: Callable[[Position], None]) -> None:
        self._make_event, self._publish = make_event, publish
        self._pending: deque[tuple[Event, Position]] = deque(maxlen=MAX_PENDING)
        self._free: list[Event] = []
        self._reached: Position | None = None

    def host_reached(self, position: Position) -> None:
        """Mark a position of the host in the queue of the device."""
        event = self._free.pop() if self._free else self._make_event()
        event.record()
        self._pending.append((event, position))

    def poll(self) -> None:
        """Publish the last position that the device has reached; again if it is the same, since it is known now."""
        while self._pending and self._pending[0][0].query():
            event, self._reached = self._pending.popleft()
            self._free.append(event)
        if self._reached is not None:
            self._publish(self._reached)

    def run(self) -> None:
        """Poll for ever; end when the device has failed, which the thread that trains sees as well."""
        try:
            while True:
                time.sleep(POLL_SECONDS)
                self.poll()
        except RuntimeError:
            return


def follow_gpu() -> None:
    """Follow the GPU of this process in a thread of its own; no effect without a launcher."""
    writer = heartbeat.writer()
    if writer is None:
        return
    position = DevicePosition(torch.cuda.Event, writer.write_device)
    writer.on_beat = position.host_reached
    threading.Thread(target=position.run, name="device position", daemon=True).start()
