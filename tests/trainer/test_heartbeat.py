"""When a missing heartbeat is a hang, on a simulated clock."""

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
    """Ranks that send heartbeats, and a launcher that checks them, on a simulated clock."""

    def __init__(self, ranks: int = 1, timeout: int | None = None, step: int = 0) -> None:
        self.now = 1000.0
        self.table = HeartbeatTable(ranks)
        self.ranks = [self.table.writer(rank, self.clock) for rank in range(ranks)]
        self.stopped: set[int] = set()
        self.detector = HangDetector(self.stopped.__contains__, self.clock)
        self.step = step
        for rank in self.ranks:
            rank.start(step, timeout)

    def clock(self) -> float:
        return self.now

    def hangs_within(self, seconds: float) -> bool:
        """Return whether a hang is detected while time passes without heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.now += min(CHECK_SECONDS, end - self.now)
            if self.detector.check({rank: self.table.read(rank) for rank in range(len(self.ranks))}):
                return True
        return False

    def beat(self, *phases: Phase, seconds: float = 0.01) -> "Pod":
        """Let all ranks pass these phases, for so many seconds each."""
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
def test_a_slow_step_is_not_a_hang_but_an_endless_one_is(ordinary: float, limit: float) -> None:
    pod = Pod().steps(seconds=ordinary).beat(Phase.DATA, Phase.FORWARD_BACKWARD)
    assert not pod.hangs_within(limit - 1)
    assert pod.hangs_within(2)


def test_a_slow_evaluation_is_not_a_hang() -> None:
    """Its first batch may compile; afterwards it is compared with earlier evaluations, not with quick steps."""
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


def test_one_long_interval_loses_its_weight() -> None:
    pod = Pod().steps().beat(Phase.DATA, seconds=50).steps()
    assert pod.table.read(0).longest < 1
    pod.beat(Phase.DATA)
    assert pod.table.read(0).longest == pytest.approx(50, rel=0.01)
    for _ in range(700):
        pod.ranks[0].beat(Phase.DATA, None)
    assert pod.table.read(0).longest == pytest.approx(25, rel=0.02)


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
def test_a_configured_timeout_applies_to_every_phase(phase: Phase) -> None:
    pod = Pod(timeout=5).steps(seconds=1).beat(phase)
    assert not pod.hangs_within(4.5)
    assert pod.hangs_within(1)


@pytest.mark.parametrize("timeout", [5, None])
def test_a_server_waits_for_its_workers_as_long_as_they_take(timeout: int | None) -> None:
    pod = Pod(timeout=timeout).steps().beat(Phase.WAIT_FOR_WORKERS)
    assert not pod.hangs_within(10_000)
    pod.stopped.add(0)
    assert pod.hangs_within(1), "unless it is stopped"


def test_the_time_of_a_frozen_container_or_machine_does_not_count() -> None:
    pod = Pod(timeout=10).steps().beat(Phase.FORWARD_BACKWARD)
    for _ in range(3):
        pod.now += 3600
        assert not pod.hangs_within(0.5)
    assert pod.hangs_within(10)


def test_a_rank_that_continues_does_not_hide_another_that_hangs() -> None:
    pod = Pod(2, timeout=5).steps()
    for _ in range(5):
        pod.ranks[0].beat(Phase.FORWARD_BACKWARD, None)
        assert not pod.hangs_within(0.9)
    assert pod.hangs_within(1)
    assert pod.detector.age(0) < 2 < 5 < pod.detector.age(1)


def test_heartbeats_of_a_forked_rank_reach_the_launcher() -> None:
    table = HeartbeatTable(2)
    if (pid := os.fork()) == 0:
        heartbeat.install(table.writer(1))
        heartbeat.start(7, 30)
        heartbeat.beat(Phase.OPTIMIZER, 8)
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.read(1)[:4] == (2, 8, 1, Phase.OPTIMIZER)
    assert table.read(1).timeout == 30
    assert table.read(0) == Heartbeat(0, 0, 0, Phase.START, 0.0, 0.0, 0.0)


def test_without_a_launcher_heartbeats_have_no_effect() -> None:
    heartbeat.start(0, 5)
    heartbeat.beat(Phase.DATA)


def test_a_heartbeat_costs_microseconds() -> None:
    """A step has about twenty; 1 µs each was measured on a slow processor. The fastest of several rounds counts."""
    try:
        heartbeat.install(HeartbeatTable(1).writer(0))
        heartbeat.start(0, None)
        heartbeat.beat(Phase.AFTER_STEP, 1)
        seconds = min(timeit.repeat(lambda: heartbeat.beat(Phase.DATA), number=10_000, repeat=10)) / 10_000
    finally:
        heartbeat.install(None)
    assert seconds < 5e-6


# --- reports -------------------------------------------------------------------------------------------------

STACKS = """Thread 0x00007f0000000700 (most recent call first):
  File "/lib/threading.py", line 320 in wait

Current thread 0x00007f0000000740 (most recent call first):
  File "/app/trainyard_trainer/data.py", line 95 in read
  File "/app/trainyard_trainer/train.py", line 203 in run
"""


def diagnostics(
    rank: int, phase: Phase = Phase.FORWARD_BACKWARD, step: int = 5, age: float = 70, stacks: str = STACKS
) -> RankDiagnostics:
    return RankDiagnostics(rank, Heartbeat(9, step, 3, phase, 0.0, 0.0, 0.0), age, stacks, "D" if not stacks else "S")


def test_the_report_has_the_location_of_each_rank() -> None:
    word = hang_detection.hang_report([diagnostics(4), diagnostics(5, Phase.DATA, age=70.6), diagnostics(6)])
    assert (word.rank, word.exception, word.step) == (5, "Hang", 5)
    assert word.message == (
        "rank 5 has sent no heartbeat for 71 s (phase: data); "
        "rank 4: step 5, forward and backward, 70 s, data.py:95 read; "
        "rank 5: step 5, data, 71 s, data.py:95 read; "
        "rank 6: step 5, forward and backward, 70 s, data.py:95 read"
    )


def test_a_rank_that_does_not_respond_is_the_culprit_rather_than_one_that_is_behind() -> None:
    word = hang_detection.hang_report([diagnostics(0, Phase.DATA, step=4), diagnostics(1, stacks="")])
    assert word.rank == 1
    assert word.message.startswith(
        "rank 1 has sent no heartbeat for 70 s (phase: forward and backward), does not respond: it is stuck in the"
    )


def test_the_longest_without_a_heartbeat_is_the_culprit_among_equals() -> None:
    assert hang_detection.hang_report([diagnostics(0), diagnostics(1, age=71), diagnostics(2)]).rank == 1


def test_a_report_of_many_ranks_fits() -> None:
    assert len(hang_detection.hang_report([diagnostics(rank) for rank in range(64)]).encode()) <= MAX_BYTES


def test_each_phase_has_a_label() -> None:
    assert len({phase.label for phase in Phase}) == len(Phase)
