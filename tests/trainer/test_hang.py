"""A rank that hangs: each pod detects it and reports the state of its ranks, and the operator finds the culprit."""

import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.builders import make_worker
from tests.support.run_config import make_config
from tests.trainer.pods import ENTRY, Pod, Starter, finish, wait_until
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.health import HealthConfig
from trainyard_operator.lifecycle.diagnosis import Diagnosis, diagnose

FAULTS = "tests.trainer.faults"
SERVER = {"data": {"mode": "parameterServer"}}
TIMEOUT = 2
SOON = 25.0
"""Seconds in which the hang of every group is found and its pods have ended. An idle machine needs 6: the timeout,
two that the launchers leave each other, and half a one between two checks. The rest is for a machine that is busy with
other tests; the automatic timeout, a minute, is still far away."""


@dataclass
class Group:
    """The pods of one job, and the rank that is stopped."""

    pods: int
    procs: int = 1
    parallelism: dict[str, Any] | None = None
    entry: str = ENTRY
    stopped: tuple[int, int] | None = None
    """Pod and local rank that receive SIGSTOP; None: the entry lets a rank hang."""
    timeout: int | None = TIMEOUT
    running: list[Pod] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        config = make_config(2, self.parallelism, stop={"steps": 1_000_000})
        return config.replace(health=HealthConfig(hang_timeout_seconds=self.timeout))

    def start(self, start: Starter) -> None:
        self.running = start(self.config, self.pods, self.procs, self.entry, {constants.ENV_GRACE: "3"})

    def stop_rank(self) -> None:
        if self.stopped is not None:
            pod, local_rank = self.stopped
            os.kill(self.running[pod].ranks()[local_rank], signal.SIGSTOP)

    def diagnosis(self) -> Diagnosis:
        """What the operator concludes from the ends of the pods."""
        messages = [(pod.folder / "termination").read_text() for pod in self.running]
        workers = [
            make_worker(i, state="Failed", replicas=len(self.running), exit_code=code, termination_message=message)
            for i, (code, message) in enumerate(zip(self.codes, messages, strict=True))
        ]
        found = diagnose(workers, 1, 0, workers[0].finished_at)  # type: ignore[arg-type]
        assert found is not None
        return found


@pytest.fixture(scope="module")
def groups(start: Starter) -> dict[str, Group]:
    """All groups of this file, started, stopped and ended side by side: each of them mostly waits."""
    groups = {
        "first rank": Group(2, stopped=(0, 0)),
        "second rank": Group(2, stopped=(1, 0)),
        "sleeps in a pod of its own": Group(2, entry=f"{FAULTS}:hang_in_rank_1"),
        "sleeps in the same pod": Group(1, 2, entry=f"{FAULTS}:hang_in_rank_1"),
        "detected late": Group(2, entry=f"{FAULTS}:hang_in_rank_1_and_detect_it_late"),
        "one of several in a pod": Group(1, 2, stopped=(0, 0)),
        "worker": Group(2, parallelism=SERVER, stopped=(0, 0)),
        "parameter server": Group(2, parallelism=SERVER, stopped=(2, 0)),
        "automatic timeout": Group(2, stopped=(1, 0), timeout=None),
    }
    for group in groups.values():
        group.start(start)
    for group in groups.values():
        group.running[0].wait_for_step(3)
    began = time.monotonic()
    for group in groups.values():
        group.stop_rank()
    waits_for_a_minute = groups["automatic timeout"]
    for group in groups.values():
        if group is not waits_for_a_minute:
            group.codes = finish(group.running, 30)
    assert time.monotonic() - began < SOON
    # By now the other groups have ended because of the hang.
    assert time.monotonic() - began > TIMEOUT + 1
    for pod in waits_for_a_minute.running:
        os.kill(pod.pid, signal.SIGTERM)
    waits_for_a_minute.codes = finish(waits_for_a_minute.running, 30)
    return groups


@pytest.mark.parametrize(("name", "stopped"), [("first rank", 0), ("second rank", 1)])
def test_a_stopped_rank_ends_all_pods_and_is_the_culprit(groups: dict[str, Group], name: str, stopped: int) -> None:
    group = groups[name]
    assert group.codes == [constants.EXIT_HANG] * 2, [pod.stderr for pod in group.running]
    found = group.diagnosis()
    assert (found.failure.rank, found.failure.reason, found.counts) == (stopped, "Hang", True)
    assert found.failure.pod == f"job-1-{stopped}"
    assert "does not respond: it is stopped" in found.failure.message
    other = group.running[1 - stopped]
    assert other.word is not None
    assert other.word.hang is not None
    assert not other.word.hang.no_stack_trace
    assert "Current thread" in other.stderr
    assert "train.py" in other.stderr
    assert "Current thread" not in group.running[stopped].stderr


@pytest.mark.parametrize("name", ["sleeps in a pod of its own", "sleeps in the same pod"])
def test_the_report_shows_where_a_sleeping_rank_is(groups: dict[str, Group], name: str) -> None:
    group = groups[name]
    assert group.codes == [constants.EXIT_HANG] * group.pods, [pod.stderr for pod in group.running]
    found = group.diagnosis()
    assert (found.failure.rank, found.failure.step, found.failure.reason) == (1, 3, "Hang")
    assert found.failure.message.startswith("rank 1 has sent no heartbeat for ")
    assert "rank 1: step 3, end of the step, " in found.failure.message
    assert "faults.py:" in found.failure.message
    log = group.running[-1].stderr
    assert "in <lambda>" in log
    assert "in faulty" in log
    if group.pods == 1:
        assert "rank 0: step 3, forward and backward, " in found.failure.message


def test_a_pod_that_detects_the_hang_a_little_later_still_reports_it(groups: dict[str, Group]) -> None:
    """If rank 1 were killed at once, rank 0 would lose its peer, and end without its stacks."""
    group = groups["detected late"]
    assert group.codes == [constants.EXIT_HANG] * 2, [pod.stderr for pod in group.running]
    assert group.diagnosis().failure.rank == 1


def test_a_stopped_rank_of_several_in_a_pod_is_the_culprit(groups: dict[str, Group]) -> None:
    group = groups["one of several in a pod"]
    assert group.codes == [constants.EXIT_HANG]
    word = group.running[0].word
    assert word is not None
    assert word.rank == 0
    assert "rank 0: step " in word.message
    assert ", no response; rank 1: step " in word.message


@pytest.mark.parametrize(("name", "stopped"), [("worker", 0), ("parameter server", 2)])
def test_a_stopped_worker_or_parameter_server_is_the_culprit(groups: dict[str, Group], name: str, stopped: int) -> None:
    group = groups[name]
    found = group.diagnosis()
    assert (found.failure.rank, found.failure.reason) == (stopped, "Hang"), [pod.stderr for pod in group.running]
    server = group.running[2].word
    is_reported = server is not None and server.hang is not None
    assert is_reported == (stopped == 2), "a server that waits for its workers does not hang"


def test_a_pod_that_hangs_can_be_stopped(groups: dict[str, Group]) -> None:
    """The automatic timeout is a minute at least."""
    group = groups["automatic timeout"]
    assert group.codes == [143, 143]
    assert group.running[0].stderr == ""


def test_a_signal_prints_the_stacks_of_a_rank_at_any_time(start: Starter) -> None:
    group = Group(1, 2)
    group.start(start)
    (pod,) = group.running
    pod.wait_for_step(3)
    os.kill(pod.ranks()[1], signal.SIGUSR1)
    wait_until(lambda: "in run" in pod.stderr, 30, lambda: pod.stderr)
    os.kill(pod.pid, signal.SIGTERM)
    assert finish([pod], 30) == [143]
    assert pod.stderr.startswith("stacks of rank 1:\n")
