"""Where a GPU is in the step: the host is ahead of it, and the hang report names the rank whose GPU is behind.

There is no GPU here: an event is reached when a test says so.
"""

import pytest

from trainyard_trainer.launcher.hang_detection import RankDiagnostics, hang_report
from trainyard_trainer.runtime import device_position, heartbeat
from trainyard_trainer.runtime.device_position import MAX_PENDING, DevicePosition
from trainyard_trainer.runtime.heartbeat import HeartbeatTable, Phase, Position


class Gpu:
    """A queue of events, of which the first `done` have been reached."""

    def __init__(self) -> None:
        self.queued = self.done = 0
        self.made = 0
        self.failed = False

    def event(self) -> "GpuEvent":
        self.made += 1
        return GpuEvent(self)


class GpuEvent:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.number = gpu, 0

    def record(self) -> None:
        self.gpu.queued += 1
        self.number = self.gpu.queued

    def query(self) -> bool:
        if self.gpu.failed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.number <= self.gpu.done


STEP = (Phase.DATA, Phase.FORWARD_BACKWARD, Phase.OPTIMIZER, Phase.AFTER_STEP)


class Rank:
    """A rank whose host runs ahead."""

    def __init__(self, table: HeartbeatTable, number: int) -> None:
        self.table, self.number = table, number
        self.writer = table.writer(number)
        self.gpu = Gpu()
        self.position = DevicePosition(self.gpu.event, self.writer.write_device)
        self.writer.on_beat = self.position.host_reached
        self.writer.start(0, None)

    def host(self, *phases: Phase) -> None:
        for phase in phases:
            step = self.table.read(self.number).step
            self.writer.beat(phase, step + 1 if phase is Phase.AFTER_STEP else None)

    def device(self, events: int) -> heartbeat.Heartbeat:
        self.gpu.done += events
        self.position.poll()
        return self.table.read(self.number)


@pytest.fixture
def table() -> HeartbeatTable:
    return HeartbeatTable(2)


def test_the_position_is_that_of_the_device_where_there_is_one(table: HeartbeatTable) -> None:
    rank = Rank(table, 0)
    assert table.read(0).device is None
    rank.host(*STEP, Phase.DATA)
    # The start of the training is an event as well.
    assert rank.device(3).device == Position(0, Phase.FORWARD_BACKWARD)
    assert table.read(0).phase is Phase.DATA
    assert rank.device(3).device == Position(1, Phase.DATA)
    # A rank on a CPU has none.
    assert table.read(1).device is None


def test_events_are_used_again(table: HeartbeatTable) -> None:
    rank = Rank(table, 0)
    for _ in range(100):
        rank.host(*STEP)
        rank.device(4)
    assert rank.gpu.made < 10


def test_a_device_that_is_far_behind_costs_no_more_memory(table: HeartbeatTable) -> None:
    rank = Rank(table, 0)
    for _ in range(MAX_PENDING):
        rank.host(*STEP)
    assert len(rank.position._pending) == MAX_PENDING


def test_the_rank_whose_gpu_is_behind_is_the_culprit(table: HeartbeatTable) -> None:
    """Both hosts wait in the optimizer; by their heartbeats, which are of the same moment, rank 0 would be named."""
    diagnostics = []
    for number, reached in ((0, 4), (1, 3)):
        rank = Rank(table, number)
        rank.host(Phase.DATA, Phase.FORWARD_BACKWARD, Phase.STAGING, Phase.OPTIMIZER)
        diagnostics.append(RankDiagnostics(number, rank.device(reached), 61.0, "Current thread ...", "S"))
    report = hang_report(diagnostics)
    assert (report.rank, report.step) == (1, 0)
    assert report.hang is not None
    assert report.hang.phase == Phase.FORWARD_BACKWARD
    assert report.message.startswith(
        "rank 1 has sent no heartbeat for 61 s (phase: optimizer, GPU in step 1: forward and backward)"
    )
    assert "rank 0: step 0, optimizer, GPU in step 1: staging of a checkpoint, 61 s" in report.message


def test_a_gpu_that_nothing_looks_at_is_not_said_to_be_where_it_was(table: HeartbeatTable) -> None:
    """In a stopped process the thread that looks at the GPU is stopped, too, while the GPU goes on."""
    now = [100.0]
    rank = Rank(table, 0)
    rank.writer._clock = lambda: now[0]
    rank.host(*STEP, *STEP, Phase.DATA, Phase.FORWARD_BACKWARD)
    rank.device(3)
    now[0] = 107.0
    # The GPU is where it was, but it was looked at again.
    assert rank.device(0).device_time == 107
    seen, stopped = (
        RankDiagnostics(0, table.read(0), 12.0, stacks, state, age).message
        for stacks, state, age in (("Current thread ...", "S", 0.2), ("", "T", 12.0))
    )
    assert "GPU in step 1: forward and backward" in seen.message
    assert seen.step == 0
    assert "(phase: forward and backward, GPU not seen for 12 s), does not respond: it is stopped" in stopped.message
    assert "GPU in step" not in hang_report([RankDiagnostics(0, table.read(0), 12.0, "", "T", 12.0)]).message
    # Others wait for what the process has not queued.
    assert stopped.step == 2
    assert stopped.hang is not None
    assert stopped.hang.phase == Phase.FORWARD_BACKWARD


def test_the_thread_ends_with_the_device(table: HeartbeatTable, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(table, 0)
    rank.gpu.failed = True
    monkeypatch.setattr(device_position, "POLL_SECONDS", 0.001)
    rank.position.run()


def test_without_a_launcher_nothing_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_writer", None)
    device_position.follow_gpu()
