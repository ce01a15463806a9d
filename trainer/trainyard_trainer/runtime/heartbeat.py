"""Signs of life: each rank says in shared memory what it is doing, and its launcher (`pod.hang`) sees when it stops to.

The launcher makes the memory before it forks. A beat costs a microsecond, and nothing at all where no launcher has
started the process. Free of torch.
"""

import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TextIO

FADE = 0.999
"""What a beat leaves of the longest interval that a phase has shown: after 700 beats it counts for half."""


class Phase(IntEnum):
    """What a rank is doing, in the order in which a step passes these; the number of the step counts those done."""

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
        """The phase for a reader."""
        return _LABELS[self]


_LABELS = {
    Phase.START: "start",
    Phase.AFTER_STEP: "end of the step",
    Phase.EVALUATION: "evaluation",
    Phase.CONSENSUS: "agreement on a checkpoint",
    Phase.CHECKPOINT: "checkpoint",
    Phase.DATA: "data",
    Phase.FORWARD_BACKWARD: "forward and backward",
    Phase.STAGING: "copy for a checkpoint",
    Phase.SERVER_UPDATE: "update at the parameter server",
    Phase.OPTIMIZER: "update",
    Phase.WAIT_FOR_WORKERS: "parameter server, waiting for workers",
    Phase.SHUTDOWN: "end of the training",
}


class Heartbeat(NamedTuple):
    """The last sign of life of a rank. One that is read while it is written may be of two beats: only for a moment."""

    number: int
    """Beats so far."""
    step: int
    """Optimizer steps of the run that are done."""
    done: int
    """Those of this attempt."""
    phase: Phase
    time: float
    """When, by the monotonic clock, which all processes of a machine share."""
    usual: float
    """Seconds that this phase takes from beat to beat: the longest, where older ones fade. 0: not known yet, since the
    phase has not been passed after the first step of the attempt, which may compile."""
    timeout: float
    """spec.health.hangTimeoutSeconds; 0: auto."""


_RECORD = struct.Struct("<QqqQddd")
_FIGURES = struct.Struct("<4q")
_FIGURES_AT = 64
"""Where in the room of a rank its figures are: another cache line than that of the beats."""
_ROOM = 128
"""Bytes of one rank: whole cache lines, so that ranks do not slow each other down."""


class HeartbeatWriter:
    """A rank's end: it writes."""

    def __init__(self, memory: mmap.mmap, offset: int, stacks: int, clock: Callable[[], float] = time.monotonic):
        self.stacks = stacks
        """Descriptor of the file where this rank says where it is, when asked by a signal."""
        self._memory, self._offset, self._clock = memory, offset, clock
        self._number = self._step = self._first = 0
        self._phase = Phase.START
        self._time = self._timeout = 0.0
        self._longest = [0.0] * len(Phase)
        self._passed = [False] * len(Phase)

    def start(self, step: int, timeout: float | None) -> None:
        """The training is about to begin, after so many steps of earlier attempts."""
        self._first, self._timeout = step, timeout or 0.0
        self.beat(Phase.START, step)

    def beat(self, phase: Phase, step: int | None) -> None:
        """From now on this rank is in a phase, or in the next round of the same."""
        now, before = self._clock(), self._phase
        if self._step > self._first:
            self._longest[before] = max(now - self._time, self._longest[before] * FADE)
            if phase is not before:
                self._passed[before] = True
        if step is not None:
            self._step = step
        self._number, self._phase, self._time = self._number + 1, phase, now
        usual = self._longest[phase] if self._passed[phase] else 0.0
        done = self._step - self._first
        _RECORD.pack_into(self._memory, self._offset, self._number, self._step, done, phase, now, usual, self._timeout)

    def publish(self, figures: tuple[int, int, int, int]) -> None:
        """Leave figures where the other ranks of the pod can read them."""
        _FIGURES.pack_into(self._memory, self._offset + _FIGURES_AT, *figures)

    def collect(self) -> list[tuple[int, ...]]:
        """The figures of each rank of the pod, by local rank; zeros of one that has told nothing yet."""
        return [_FIGURES.unpack_from(self._memory, at + _FIGURES_AT) for at in range(0, len(self._memory), _ROOM)]


class HeartbeatTable:
    """The launcher's end: it reads. To be made before any rank is forked."""

    def __init__(self, ranks: int) -> None:
        # The size of an anonymous mapping is what was asked for, though the kernel gives whole pages.
        self._memory = mmap.mmap(-1, ranks * _ROOM)
        self.stacks = [os.memfd_create("stacks") for _ in range(ranks)]
        """One for each rank, see `HeartbeatWriter.stacks`."""

    def of(self, local_rank: int, clock: Callable[[], float] = time.monotonic) -> HeartbeatWriter:
        """What a rank takes along."""
        return HeartbeatWriter(self._memory, local_rank * _ROOM, self.stacks[local_rank], clock)

    def read(self, local_rank: int) -> Heartbeat:
        """The last beat of a rank."""
        number, step, done, phase, *seconds = _RECORD.unpack_from(self._memory, local_rank * _ROOM)
        return Heartbeat(number, step, done, Phase(phase), *seconds)

    def close(self) -> None:
        """Give back the memory and the files, once no rank is left."""
        self._memory.close()
        for file in self.stacks:
            os.close(file)


_mine: HeartbeatWriter | None = None


def install(heart: HeartbeatWriter | None) -> None:
    """Let this process be the rank that a heart is for."""
    global _mine  # noqa: PLW0603 (as with a log: all of the training beats, and nothing is to be handed around for it)
    _mine = heart


def start(step: int, timeout: float | None) -> None:
    """See `HeartbeatWriter.start`."""
    if _mine is not None:
        _mine.start(step, timeout)


def beat(phase: Phase, step: int | None = None) -> None:
    """See `HeartbeatWriter.beat`. Only the thread that trains may call it."""
    if _mine is not None:
        _mine.beat(phase, step)


def publish(figures: tuple[int, int, int, int]) -> None:
    """See `HeartbeatWriter.publish`."""
    if _mine is not None:
        _mine.publish(figures)


def collect() -> list[tuple[int, ...]]:
    """See `HeartbeatWriter.collect`; nothing without a launcher."""
    return [] if _mine is None else _mine.collect()


def stack_file() -> int | TextIO:
    """Where this process is to say where each of its threads is; the launcher copies that to standard error."""
    return sys.stderr if _mine is None else _mine.stacks
