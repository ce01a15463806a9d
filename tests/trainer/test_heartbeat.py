"""When no sign of life is a hang, by a clock of the test's own."""

import os
import timeit

import pytest

from trainyard.protocol.termination import MAX_BYTES
from trainyard_trainer.launcher import hang_detection
from trainyard_trainer.launcher.hang_detection import CHECK_SECONDS, HangDetector, RankDiagnostics
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Heartbeat, HeartbeatTable, Phase

STEP = (Phase.DATA, Phase.FORWARD_BACKWARD, Phase.OPTIMIZER)


class Pod:
    """Ranks that beat, and a launcher that looks at them, while the time passes."""

    def __init__(self, ranks: int = 1, timeout: int | None = None, step: int = 0) -> None:
        self.now = 1000.0
        self.hearts = HeartbeatTable(ranks)
        self.ranks = [self.hearts.of(rank, self.clock) for rank in range(ranks)]
        self.stopped: set[int] = set()
        self.watch = HangDetector(self.stopped.__contains__, self.clock)
        self.step = step
        for rank in self.ranks:
            rank.start(step, timeout)

    def clock(self) -> float:
        return self.now

    def hangs_within(self, seconds: float) -> bool:
        """Let time pass with nothing done."""
        end = self.now + seconds
        while self.now < end:
            self.now += min(CHECK_SECONDS, end - self.now)
            if self.watch.check({rank: self.hearts.read(rank) for rank in range(len(self.ranks))}):
                return True
        return False

    def beat(self, *phases: Phase, seconds: float = 0.01) -> "Pod":
        """All ranks are in these phases, for so long each."""
        for phase in phases:
            for rank in self.ranks:
                rank.beat(phase, None)
            assert not self.hangs_within(seconds), phase
        return self

    def steps(self, count: int = 3, seconds: float = 0.01) -> "Pod":
        for _ in range(count):
            self.beat(*STEP, seconds=seconds)
            self.step += 1
            for rank in self.ranks:
                rank.beat(Phase.AFTER_STEP, self.step)
        return self


def test_before_the_first_step_nothing_is_a_hang() -> None:
    pod = Pod(timeout=1, step=500)
    assert not pod.hangs_within(5000)
    assert not pod.beat(Phase.DATA, Phase.FORWARD_BACKWARD).hangs_within(5000)


@pytest.mark.parametrize(("ordinary", "limit"), [(0.01, 60), (2.5, 60), (30, 600), (300, 6000)])
def test_a_slow_step_is_no_hang_and_an_endless_one_is(ordinary: float, limit: float) -> None:
    pod = Pod().steps(seconds=ordinary).beat(Phase.DATA, Phase.FORWARD_BACKWARD)
    assert not pod.hangs_within(limit - 1)
    assert pod.hangs_within(2)


def test_a_slow_evaluation_is_no_hang() -> None:
    """Its first batch may compile; afterwards it is compared with itself, and not with quick steps."""
    pod = Pod().steps().beat(Phase.EVALUATION, seconds=590).beat(Phase.EVALUATION, Phase.EVALUATION, seconds=100)
    pod.steps().beat(Phase.EVALUATION)
    assert not pod.hangs_within(20 * 580)
    assert pod.hangs_within(20 * 10)


def test_a_first_evaluation_that_never_ends_is_a_hang() -> None:
    pod = Pod().steps().beat(Phase.EVALUATION, Phase.EVALUATION)
    assert not pod.hangs_within(599)
    assert pod.hangs_within(2)


def test_compilation_in_the_first_step_does_not_make_the_timeout_long() -> None:
    pod = Pod().beat(*STEP, seconds=300).steps().beat(Phase.DATA, Phase.FORWARD_BACKWARD)
    assert pod.hangs_within(61)


def test_an_exception_is_forgotten_after_a_while() -> None:
    pod = Pod().steps().beat(Phase.DATA, seconds=50).steps()
    assert pod.hearts.read(0).usual < 1
    pod.beat(Phase.DATA)
    assert pod.hearts.read(0).usual == pytest.approx(50, rel=0.01)
    for _ in range(700):
        pod.ranks[0].beat(Phase.DATA, None)
    assert pod.hearts.read(0).usual == pytest.approx(25, rel=0.02)


def test_a_checkpoint_takes_as_long_as_the_storage_needs() -> None:
    pod = Pod(2).steps().beat(Phase.CHECKPOINT)
    assert not pod.hangs_within(100_000)
    assert not pod.steps().beat(Phase.DATA).hangs_within(59)


def test_a_rank_that_waits_for_the_checkpoint_of_another_does_not_hang() -> None:
    pod = Pod(2).steps().beat(Phase.CHECKPOINT)
    pod.ranks[1].beat(Phase.DATA, None)
    assert not pod.hangs_within(10_000)
    pod.ranks[0].beat(Phase.DATA, None)
    assert pod.hangs_within(61)


@pytest.mark.parametrize("phase", [Phase.CHECKPOINT, Phase.EVALUATION, Phase.FORWARD_BACKWARD, Phase.SHUTDOWN])
def test_a_number_is_for_every_phase(phase: Phase) -> None:
    pod = Pod(timeout=5).steps(seconds=1).beat(phase)
    assert not pod.hangs_within(4.5)
    assert pod.hangs_within(1)


@pytest.mark.parametrize("timeout", [5, None])
def test_a_server_waits_for_its_workers_as_long_as_they_take(timeout: int | None) -> None:
    pod = Pod(timeout=timeout).steps().beat(Phase.WAIT_FOR_WORKERS)
    assert not pod.hangs_within(10_000)
    pod.stopped.add(0)
    assert pod.hangs_within(1), "unless it is stopped"


def test_what_a_frozen_container_or_machine_slept_is_not_counted() -> None:
    pod = Pod(timeout=10).steps().beat(Phase.FORWARD_BACKWARD)
    for _ in range(3):
        pod.now += 3600
        assert not pod.hangs_within(0.5)
    assert pod.hangs_within(10)


def test_a_rank_that_goes_on_does_not_excuse_another() -> None:
    pod = Pod(2, timeout=5).steps()
    for _ in range(5):
        pod.ranks[0].beat(Phase.FORWARD_BACKWARD, None)
        assert not pod.hangs_within(0.9)
    assert pod.hangs_within(1)
    assert pod.watch.age(0) < 2 < 5 < pod.watch.age(1)


def test_a_forked_rank_is_heard() -> None:
    hearts = HeartbeatTable(2)
    if (pid := os.fork()) == 0:
        heartbeat.install(hearts.of(1))
        heartbeat.start(7, 30)
        heartbeat.beat(Phase.OPTIMIZER, 8)
        os._exit(0)
    os.waitpid(pid, 0)
    assert hearts.read(1)[:4] == (2, 8, 1, Phase.OPTIMIZER)
    assert hearts.read(1).timeout == 30
    assert hearts.read(0) == Heartbeat(0, 0, 0, Phase.START, 0.0, 0.0, 0.0)


def test_without_a_launcher_a_beat_is_nothing() -> None:
    heartbeat.start(0, 5)
    heartbeat.beat(Phase.DATA)


def test_a_beat_costs_next_to_nothing() -> None:
    """Twenty or so in a step: 1 µs each as measured on a slow processor."""
    try:
        heartbeat.install(HeartbeatTable(1).of(0))
        heartbeat.start(0, None)
        heartbeat.beat(Phase.AFTER_STEP, 1)
        seconds = min(timeit.repeat(lambda: heartbeat.beat(Phase.DATA), number=10_000, repeat=5)) / 10_000
    finally:
        heartbeat.install(None)
    assert seconds < 5e-6


# --- what is said -------------------------------------------------------------------------------------------------

STACKS = """Thread 0x00007f0000000700 (most recent call first):
  File "/lib/threading.py", line 320 in wait

Current thread 0x00007f0000000740 (most recent call first):
  File "/app/trainyard_trainer/data.py", line 95 in read
  File "/app/trainyard_trainer/train.py", line 203 in run
"""


def witness(
    rank: int, phase: Phase = Phase.FORWARD_BACKWARD, step: int = 5, age: float = 70, answer: str = STACKS
) -> RankDiagnostics:
    return RankDiagnostics(rank, Heartbeat(9, step, 3, phase, 0.0, 0.0, 0.0), age, answer, "D" if not answer else "S")


def test_a_hang_is_told_with_the_place_of_each_rank() -> None:
    word = hang_detection.hang_report([witness(4), witness(5, Phase.DATA, age=70.6), witness(6)])
    assert (word.rank, word.exception, word.step) == (5, "Hang", 5)
    assert word.message == (
        "rank 5 gave no sign of life for 71 s (phase: data); "
        "rank 4: step 5, forward and backward, 70 s, data.py:95 read; "
        "rank 5: step 5, data, 71 s, data.py:95 read; "
        "rank 6: step 5, forward and backward, 70 s, data.py:95 read"
    )


def test_a_rank_that_does_not_answer_is_blamed_before_one_that_is_behind() -> None:
    word = hang_detection.hang_report([witness(0, Phase.DATA, step=4), witness(1, answer="")])
    assert word.rank == 1
    assert word.message.startswith(
        "rank 1 gave no sign of life for 70 s (phase: forward and backward), and does not answer: it is stuck in the"
    )


def test_the_longest_without_a_sign_of_life_is_blamed_where_all_stand_alike() -> None:
    assert hang_detection.hang_report([witness(0), witness(1, age=71), witness(2)]).rank == 1


def test_many_ranks_fit() -> None:
    assert len(hang_detection.hang_report([witness(rank) for rank in range(64)]).encode()) <= MAX_BYTES


def test_each_phase_has_words() -> None:
    assert len({phase.label for phase in Phase}) == len(Phase)
