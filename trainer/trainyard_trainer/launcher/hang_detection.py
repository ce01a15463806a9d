"""Detects that ranks of this pod hang, and finds the likeliest culprit among them. Free of torch.

All ranks of a job wait for each other, so one rank that hangs soon blocks all others, in every pod. Each launcher
detects that by itself and reports its own likeliest culprit in the termination message; the operator compares the
pods (`TerminationMessage.culprit_key`).
"""

import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainyard.protocol.termination import Hang, TerminationMessage
from trainyard_trainer.runtime.heartbeat import Heartbeat, Phase, Position

CHECK_SECONDS = 0.5
"""Time between two checks of the heartbeats."""
MIN_TIMEOUT = 60.0
"""Shortest automatic timeout, in seconds."""
TIMEOUT_FACTOR = 20.0
"""Automatic timeout, as a multiple of the longest recent interval between two heartbeats of the phase."""
FIRST_TIMEOUT = 600.0
"""Automatic timeout of a phase that has not been completed yet: as long as gloo and NCCL wait for a peer."""
DEVICE_SECONDS = 2.0
"""Age of the last look at a GPU from which on its position is not known: a few `device_position.POLL_SECONDS`."""
STACK_SECONDS = 2.0
"""Time for ranks to print their stacks, and for other pods to detect the hang before these ranks are killed."""


def timeout_of(heartbeat: Heartbeat) -> float:
    """Return the seconds without a heartbeat that count as a hang, for the phase that a rank is in.

    `spec.health.hangTimeoutSeconds` sets this number for every phase. The automatic timeout is 20 times the longest
    interval between two heartbeats that the rank has shown in this phase, but at least 60 s; an interval loses half of
    its weight after 700 heartbeats of the phase. A phase that has not been completed yet may compile: 600 s.

    The timeout is infinite

    - before the first step of the attempt is done, which waits for all pods and compiles;
    - for a parameter server that waits for its workers, which are watched themselves and may be evaluating;
    - for a checkpoint, with the automatic timeout: storage may take any time.
    """
    if heartbeat.attempt_steps == 0 or heartbeat.phase is Phase.WAIT_FOR_WORKERS:
        return math.inf
    if heartbeat.timeout:
        return heartbeat.timeout
    if heartbeat.phase is Phase.CHECKPOINT:
        return math.inf
    return max(MIN_TIMEOUT, TIMEOUT_FACTOR * heartbeat.longest) if heartbeat.longest else FIRST_TIMEOUT


def timeout_if_stopped(heartbeat: Heartbeat) -> float:
    """Return the timeout of a process that is stopped (SIGSTOP): after the first step it is finite in every phase."""
    timeout = timeout_of(heartbeat)
    if heartbeat.attempt_steps == 0 or math.isfinite(timeout):
        return timeout
    return heartbeat.timeout or MIN_TIMEOUT


class HangDetector:
    """Checks the heartbeats of the local ranks periodically."""

    def __init__(self, is_stopped: Callable[[int], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`is_stopped`: whether the process of a local rank is stopped."""
        self._is_stopped = is_stopped
        self._clock = clock
        self._last_check = clock()
        self._ages: dict[int, float] = {}
        self._numbers: dict[int, int] = {}

    def check(self, heartbeats: Mapping[int, Heartbeat]) -> bool:
        """Return whether the ranks hang, given the last heartbeat of each rank that is alive, by local rank."""
        now = self._clock()
        # A frozen container or machine stops this process together with the ranks: that time does not count.
        passed = min(now - self._last_check, 4 * CHECK_SECONDS)
        self._last_check = now
        for rank, heartbeat in heartbeats.items():
            unchanged = self._numbers.get(rank) == heartbeat.number
            self._ages[rank] = self.age(rank) + passed if unchanged else min(max(0.0, now - heartbeat.time), passed)
            self._numbers[rank] = heartbeat.number
        return self._hang(heartbeats)

    def age(self, rank: int) -> float:
        """Return the seconds since the last heartbeat of a local rank."""
        return self._ages.get(rank, 0.0)

    def _hang(self, heartbeats: Mapping[int, Heartbeat]) -> bool:
        # A stopped process makes no progress, whatever the others do.
        if any(self.age(r) > timeout_if_stopped(h) and self._is_stopped(r) for r, h in heartbeats.items()):
            return True
        # If one rank may take any time, those that wait for it may, too.
        timeouts = {rank: timeout_of(heartbeat) for rank, heartbeat in heartbeats.items()}
        if not all(timeout < math.inf for timeout in timeouts.values()):
            return False
        return any(self.age(rank) > timeout for rank, timeout in timeouts.items())


class StackTraces:
    """The files into which ranks print the stacks of their threads when they receive SIGUSR1."""

    def __init__(self, files: list[int]) -> None:
        self._files = files
        self._read = [0] * len(files)

    def read_new(self, rank: int) -> str:
        """Return what a local rank has printed since the last call."""
        size = os.fstat(self._files[rank]).st_size
        text = os.pread(self._files[rank], size - self._read[rank], self._read[rank])
        self._read[rank] += len(text)
        return text.decode(errors="replace")

    def collect(self, processes: Mapping[int, int]) -> dict[int, str]:
        """Return the stacks of each local rank, given their process ids; empty for one that does not respond."""
        for process in processes.values():
            os.kill(process, signal.SIGUSR1)
        stacks = dict.fromkeys(processes, "")
        deadline = time.monotonic() + STACK_SECONDS
        complete = False
        while not complete and time.monotonic() < deadline:
            time.sleep(0.05)
            new = {rank: self.read_new(rank) for rank in stacks}
            complete = all(stacks.values()) and not any(new.values())
            stacks = {rank: text + new[rank] for rank, text in stacks.items()}
        return stacks


@dataclass(frozen=True)
class RankDiagnostics:
    """State of one rank when its pod hangs."""

    rank: int
    """Global rank."""
    heartbeat: Heartbeat
    age: float
    """Seconds since the heartbeat."""
    stacks: str
    """Stacks of its threads; empty if it did not respond."""
    state: str
    """State of its process, as in /proc/PID/stat."""
    device_age: float = 0.0
    """Seconds since the last look at its GPU, if it has one."""

    @property
    def message(self) -> TerminationMessage:
        """Termination message of a pod whose likeliest culprit is this rank."""
        response = "" if self.stacks else f", does not respond: {_describe_state(self.state)}"
        host, (step, phase) = self.heartbeat.phase, self._position
        where = f"phase: {host.label}{self._device}"
        message = f"rank {self.rank} has sent no heartbeat for {self.age:.0f} s ({where}){response}"
        # The host of a GPU is ahead of it, so the position of the GPU tells whom the others wait for.
        hang = Hang(no_stack_trace=not self.stacks, phase=phase, last_heartbeat=round(time.time() - self.age, 3))
        return TerminationMessage(rank=self.rank, exception="Hang", message=message, step=step, hang=hang)

    @property
    def _position(self) -> Position:
        """How far the rank has come: its GPU, as far as that is known, and else its process.

        In a process that is stopped, or does not let its other threads run, nothing looks at the GPU, which completes
        what the process has queued: others wait for what the process has not queued.
        """
        device = self.heartbeat.device
        return self.heartbeat.host if device is None or self.device_age > DEVICE_SECONDS else device

    @property
    def _device(self) -> str:
        """Position of the rank's GPU, as the end of a phrase; empty for a CPU."""
        device = self.heartbeat.device
        if device is None:
            return ""
        if self.device_age > DEVICE_SECONDS:
            return f", GPU not seen for {self.device_age:.0f} s"
        return f", GPU in step {device.step + 1}: {device.phase.label}"

    def __str__(self) -> str:
        location = innermost(self.stacks) if self.stacks else "no response"
        return (
            f"rank {self.rank}: step {self.heartbeat.step}, {self.heartbeat.phase.label}{self._device}, "
            f"{self.age:.0f} s, {location}"
        )


def hang_report(ranks: list[RankDiagnostics]) -> TerminationMessage:
    """Return the termination message of a pod that hangs: the likeliest culprit, and the state of each rank."""
    message = min((rank.message for rank in ranks), key=lambda message: message.culprit_key)
    return message.replace(message="; ".join([message.message, *map(str, ranks)]))


def innermost(stacks: str) -> str:
    """Return file, line and function of the thread that handled the signal: on Linux the main thread."""
    _, _, current = stacks.rpartition("Current thread ")
    found = re.search(r'File "(?:[^"]*/)?([^"]+)", line (\d+) in (\S+)', current)
    return f"{found[1]}:{found[2]} {found[3]}" if found else "location unknown"


def process_state(process: int) -> str:
    """Return the state of a process as in /proc/PID/stat (R, S, D, T ...); empty if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _describe_state(state: str) -> str:
    descriptions = {"T": "it is stopped", "t": "a debugger has stopped it", "D": "it is stuck in the kernel"}
    return descriptions.get(state, f"its process is in state {state or 'unknown'}")
