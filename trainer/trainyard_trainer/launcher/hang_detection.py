"""Finds out that the ranks of this pod hang, and which of them to blame: the launcher's part. Free of torch.

All ranks of a job wait for each other, so one that hangs soon has all others waiting, in every pod. Each launcher
finds that by itself, and tells the operator about the rank of its own that is the likeliest cause; the operator takes
the likeliest of all (`TerminationMessage.blame`).
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
from trainyard_trainer.runtime.heartbeat import Heartbeat, Phase

CHECK_SECONDS = 0.5
"""From one look at the beats to the next."""
SHORTEST = 60.0
TIMES_USUAL = 20.0
UNKNOWN = 600.0
"""The timeout of auto for a phase that has not been passed yet: as long as gloo and NCCL wait for a peer."""
ANSWER_SECONDS = 2.0
"""Time that ranks get to say where they are, and that other pods get to find the hang before these ranks are killed."""


def timeout_of(beat: Heartbeat) -> float:
    """Seconds without another beat that are a hang, in the phase that a rank is in.

    By hand (`spec.health.hangTimeoutSeconds`) that number in every phase. auto: 20 times the longest interval between
    beats that this phase has shown on this rank, where an interval counts for half after 700 more beats of the phase,
    at least 60 s; 600 s until the phase has been passed once, since what comes first may compile. Infinite

    - before the first step of the attempt is done, which waits for all pods, and compiles;
    - for a parameter server that waits for its workers, which are watched themselves, and may be evaluating;
    - for auto while a checkpoint is written: nobody knows how long the storage takes.
    """
    if beat.done == 0 or beat.phase is Phase.WAIT_FOR_WORKERS:
        return math.inf
    if beat.timeout:
        return beat.timeout
    if beat.phase is Phase.CHECKPOINT:
        return math.inf
    return max(SHORTEST, TIMES_USUAL * beat.usual) if beat.usual else UNKNOWN


def timeout_if_stopped(beat: Heartbeat) -> float:
    """The same for a process that somebody has stopped: no phase excuses that, once the training has begun."""
    known = timeout_of(beat)
    return known if beat.done == 0 or math.isfinite(known) else beat.timeout or SHORTEST


class HangDetector:
    """Looks at the beats of the ranks again and again."""

    def __init__(self, is_stopped: Callable[[int], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`is_stopped`: of a local rank, whether its process is."""
        self._is_stopped = is_stopped
        self._clock = clock
        self._before = clock()
        self._ages: dict[int, float] = {}
        self._numbers: dict[int, int] = {}

    def check(self, beats: Mapping[int, Heartbeat]) -> bool:
        """Whether the ranks hang, given the last beats of those that are alive, by local rank."""
        now = self._clock()
        # What freezes a container or a machine stops the ranks and this process together: such time is nobody's.
        passed = min(now - self._before, 4 * CHECK_SECONDS)
        self._before = now
        for rank, beat in beats.items():
            same = self._numbers.get(rank) == beat.number
            self._ages[rank] = self._ages[rank] + passed if same else min(max(0.0, now - beat.time), passed)
            self._numbers[rank] = beat.number
        return self._hang(beats)

    def age(self, rank: int) -> float:
        """Seconds since the last beat of a rank."""
        return self._ages.get(rank, 0.0)

    def _hang(self, beats: Mapping[int, Heartbeat]) -> bool:
        if any(self.age(r) > timeout_if_stopped(b) and self._is_stopped(r) for r, b in beats.items()):
            return True
        # Where one rank may take as long as it likes, those that wait for it may, too.
        timeouts = {rank: timeout_of(beat) for rank, beat in beats.items()}
        return max(timeouts.values(), default=math.inf) < math.inf and any(
            self.age(rank) > timeout for rank, timeout in timeouts.items()
        )


class StackTraces:
    """What the ranks have written into the files where they say where they are."""

    def __init__(self, files: list[int]) -> None:
        self._files = files
        self._read = [0] * len(files)

    def news(self, rank: int) -> str:
        """What a local rank has written since the last call."""
        size = os.fstat(self._files[rank]).st_size
        text = os.pread(self._files[rank], size - self._read[rank], self._read[rank])
        self._read[rank] += len(text)
        return text.decode(errors="replace")

    def ask(self, processes: Mapping[int, int]) -> dict[int, str]:
        """Where each local rank is, given their process ids; empty for one that does not answer in time."""
        for process in processes.values():
            os.kill(process, signal.SIGUSR1)
        answers = dict.fromkeys(processes, "")
        end = time.monotonic() + ANSWER_SECONDS
        complete = False
        while not complete and time.monotonic() < end:
            time.sleep(0.05)
            news = {rank: self.news(rank) for rank in answers}
            complete = all(answers.values()) and not any(news.values())
            answers = {rank: text + news[rank] for rank, text in answers.items()}
        return answers


@dataclass(frozen=True)
class RankDiagnostics:
    """What is known of one rank when its pod hangs."""

    rank: int
    """Among all of the job."""
    beat: Heartbeat
    age: float
    """Seconds since that."""
    answer: str
    """Its stacks; empty if it is silent."""
    state: str
    """State of its process, as /proc has it."""

    @property
    def word(self) -> TerminationMessage:
        """The last word of a pod that blames this rank."""
        silence = "" if self.answer else f", and does not answer: {_state_in_words(self.state)}"
        phase = self.beat.phase.label
        message = f"rank {self.rank} gave no sign of life for {self.age:.0f} s (phase: {phase}){silence}"
        place = Hang(silent=not self.answer, phase=self.beat.phase, last_beat=round(time.time() - self.age, 3))
        return TerminationMessage(rank=self.rank, exception="Hang", message=message, step=self.beat.step, hang=place)

    def __str__(self) -> str:
        where = innermost(self.answer) if self.answer else "silent"
        return f"rank {self.rank}: step {self.beat.step}, {self.beat.phase.label}, {self.age:.0f} s, {where}"


def hang_report(witnesses: list[RankDiagnostics]) -> TerminationMessage:
    """What this pod says: whom it blames, and where each of its ranks is."""
    word = min((witness.word for witness in witnesses), key=lambda word: word.blame)
    return word.replace(message="; ".join([word.message, *map(str, witnesses)]))


def innermost(stacks: str) -> str:
    """File, line and function in which the thread is that took the signal: the main one, as Linux has it."""
    _, _, current = stacks.rpartition("Current thread ")
    found = re.search(r'File "(?:[^"]*/)?([^"]+)", line (\d+) in (\S+)', current)
    return f"{found[1]}:{found[2]} {found[3]}" if found else "place unknown"


def process_state(process: int) -> str:
    """R, S, D, T, ... as in /proc; empty for one that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _state_in_words(state: str) -> str:
    return {"T": "it is stopped", "t": "a debugger holds it", "D": "it is stuck in the kernel"}.get(
        state, f"the state of its process is {state or 'unknown'}"
    )
