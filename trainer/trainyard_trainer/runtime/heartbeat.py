"""Heartbeats: each rank writes to shared memory what it is doing, and its launcher detects when that stops.

The launcher allocates the memory before it forks the ranks (see `launcher.hang_detection`). A heartbeat costs a
microsecond, and almost nothing in a process that no launcher has started. Free of torch.
"""

import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TextIO

DECAY = 0.999
"""Factor per heartbeat for the longest interval that a phase has shown: it is halved after 700 heartbeats."""


class Phase(IntEnum):
    """Phases of a step, in the order in which a rank passes them; a step counts as done from AFTER_STEP on."""

    START = 0
    AFTER_STEP = 1
    EVALUATION = 2
    CONSENSUS = 3
    CHECKPOINT = 4
    DATA = 5
    FORWARD_BACKWARD = 6
    STAGING = 7
    SERVER_UPDATE = 8
    OPTIMIZER = 9
    WAIT_FOR_WORKERS = 10
    SHUTDOWN = 11

    @property
    def label(self) -> str:
        """Name of the phase for a reader."""
        return _LABELS[self]


_LABELS = {
    Phase.START: "start",
    Phase.AFTER_STEP: "end of the step",
    Phase.EVALUATION: "evaluation",
    Phase.CONSENSUS: "consensus on checkpoints",
    Phase.CHECKPOINT: "checkpoint",
    Phase.DATA: "data",
    Phase.FORWARD_BACKWARD: "forward and backward",
    Phase.STAGING: "staging of a checkpoint",
    Phase.SERVER_UPDATE: "update on the parameter server",
    Phase.OPTIMIZER: "optimizer",
    Phase.WAIT_FOR_WORKERS: "parameter server, waiting for workers",
    Phase.SHUTDOWN: "shutdown",
}


class Position(NamedTuple):
    """A point of the training."""

    step: int
    """Optimizer steps that are done."""
    phase: Phase


class Heartbeat(NamedTuple):
    """The last heartbeat of a rank. If it is read while it is written, its fields may briefly mix two heartbeats."""

    number: int
    """Number of this heartbeat, counted from 1; 0 before the first one."""
    step: int
    """Optimizer steps of the run that are done."""
    attempt_steps: int
    """Optimizer steps of this attempt that are done."""
    phase: Phase
    time: float
    """Monotonic time, which all processes of a machine share."""
    longest: float
    """Longest interval between two heartbeats of this phase in seconds, decaying; 0 until the phase has been completed
    once after the first step of the attempt, which may compile."""
    timeout: float
    """spec.health.hangTimeoutSeconds; 0: automatic."""
    device: Position | None = None
    """Where the device of the rank is, which lags behind the rank; None for a CPU."""
    device_time: float = 0.0
    """Monotonic time of the last look at the device, whether it had come further or not."""

    @property
    def host(self) -> Position:
        """How far the process of the rank has come."""
        return Position(self.step, self.phase)


_RECORD = struct.Struct("<QqqQddd")
_PUBLISHED = struct.Struct("<4q")
_PUBLISHED_OFFSET = 64
"""Offset of the published numbers in a rank's slot: another cache line than that of the heartbeat."""
_DEVICE = struct.Struct("<?qqd")
_DEVICE_OFFSET = 96
"""Offset of the position of the device in a rank's slot."""
_SLOT_BYTES = 128
"""Size of a rank's slot: complete cache lines, so that ranks do not slow each other down."""


class HeartbeatWriter:
    """Writes the heartbeats of one rank into its slot of the table."""

    def __init__(self, memory: mmap.mmap, offset: int, stacks: int, clock: Callable[[], float] = time.monotonic):
        self.stacks = stacks
        """Descriptor of the file into which this rank prints its stacks on SIGUSR1."""
        self._memory, self._offset, self._clock = memory, offset, clock
        self._number = self._step = self._first_step = 0
        self._phase = Phase.START
        self._time = self._timeout = 0.0
        self._longest = [0.0] * len(Phase)
        self._completed = [False] * len(Phase)
        self.on_beat: Callable[[Position], None] | None = None
        """Receives each position that this rank has reached; None: nothing does."""

    def start(self, step: int, timeout: float | None) -> None:
        """Announce that training begins after so many steps of earlier attempts. `timeout`: None for automatic."""
        self._first_step, self._timeout = step, timeout or 0.0
        self.beat(Phase.START, step)

    def beat(self, phase: Phase, step: int | None) -> None:
        """Enter a phase, or the next round of the current one. `step`: steps done, if that has changed."""
        now, previous = self._clock(), self._phase
        if self._step > self._first_step:
            self._longest[previous] = max(now - self._time, self._longest[previous] * DECAY)
            if phase is not previous:
                self._completed[previous] = True
        if step is not None:
            self._step = step
        self._number, self._phase, self._time = self._number + 1, phase, now
        longest = self._longest[phase] if self._completed[phase] else 0.0
        attempt_steps = self._step - self._first_step
        _RECORD.pack_into(
            self._memory, self._offset, self._number, self._step, attempt_steps, phase, now, longest, self._timeout
        )
        if self.on_beat is not None:
            self.on_beat(Position(self._step, phase))

    def write_device(self, position: Position) -> None:
        """Write where this rank's device is now; may be called from any thread."""
        _DEVICE.pack_into(self._memory, self._offset + _DEVICE_OFFSET, True, *position, self._clock())

    def publish(self, numbers: tuple[int, int, int, int]) -> None:
        """Publish four numbers to the other ranks of the pod."""
        _PUBLISHED.pack_into(self._memory, self._offset + _PUBLISHED_OFFSET, *numbers)

    def collect(self) -> list[tuple[int, ...]]:
        """Return the published numbers of each rank of the pod, by local rank; zeros before its first ones."""
        slots = range(0, len(self._memory), _SLOT_BYTES)
        return [_PUBLISHED.unpack_from(self._memory, slot + _PUBLISHED_OFFSET) for slot in slots]


class HeartbeatTable:
    """Heartbeats of all ranks of a pod, as the launcher reads them; it must exist before the first fork."""

    def __init__(self, ranks: int) -> None:
        # An anonymous mapping has the length that was asked for, although the kernel allocates entire pages.
        self._memory = mmap.mmap(-1, ranks * _SLOT_BYTES)
        self.stacks = [os.memfd_create("stacks") for _ in range(ranks)]
        """Descriptors by local rank, see `HeartbeatWriter.stacks`."""

    def writer(self, local_rank: int, clock: Callable[[], float] = time.monotonic) -> HeartbeatWriter:
        """Return the writer that a rank inherits."""
        return HeartbeatWriter(self._memory, local_rank * _SLOT_BYTES, self.stacks[local_rank], clock)

    def read(self, local_rank: int) -> Heartbeat:
        """Return the last heartbeat of a rank."""
        slot = local_rank * _SLOT_BYTES
        number, step, attempt_steps, phase, beat, longest, timeout = _RECORD.unpack_from(self._memory, slot)
        known, device_step, device_phase, seen = _DEVICE.unpack_from(self._memory, slot + _DEVICE_OFFSET)
        device = Position(device_step, Phase(device_phase)) if known else None
        return Heartbeat(number, step, attempt_steps, Phase(phase), beat, longest, timeout, device, seen)

    def close(self) -> None:
        """Release memory and files; no rank may be left."""
        self._memory.close()
        for file in self.stacks:
            os.close(file)


_writer: HeartbeatWriter | None = None


def install(writer: HeartbeatWriter | None) -> None:
    """Install the writer of this process; None: heartbeats are not written."""
    global _writer  # noqa: PLW0603 (as with a logger: every part of the training sends heartbeats)
    _writer = writer


def writer() -> HeartbeatWriter | None:
    """Return the writer of this process; None without a launcher."""
    return _writer


def start(step: int, timeout: float | None) -> None:
    """Announce the start of training, see `HeartbeatWriter.start`."""
    if _writer is not None:
        _writer.start(step, timeout)


def beat(phase: Phase, step: int | None = None) -> None:
    """Write a heartbeat, see `HeartbeatWriter.beat`. Only the thread that trains may call it."""
    if _writer is not None:
        _writer.beat(phase, step)


def publish(numbers: tuple[int, int, int, int]) -> None:
    """Publish four numbers of this rank to the other ranks of the pod; no effect without a launcher."""
    if _writer is not None:
        _writer.publish(numbers)


def collect() -> list[tuple[int, ...]]:
    """Return the published numbers of each rank of the pod, by local rank; empty without a launcher."""
    return [] if _writer is None else _writer.collect()


def stack_file() -> int | TextIO:
    """Return the file into which this process prints its stacks; the launcher copies them to standard error."""
    return sys.stderr if _writer is None else _writer.stacks
