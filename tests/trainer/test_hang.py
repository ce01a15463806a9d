"""A rank that hangs: both pods find it by themselves, say where everybody is, and the right rank is blamed."""

import os
import signal
import time
from typing import Any

import pytest

from tests.builders import make_worker
from tests.trainer.pods import Pod, Starter, finish, make_config
from trainyard.config import RunConfig
from trainyard.protocol import constants
from trainyard.resource.health import HealthConfig
from trainyard_operator.lifecycle.diagnosis import Diagnosis, diagnose

FAULTS = "tests.trainer.faults"
TIMEOUT = 2
SOON = 8.0
"""Seconds: the timeout, two that the launchers leave each other, half a one between two looks, and some to spare."""


def endless(world_size: int, parallelism: dict[str, Any] | None = None, timeout: int | None = TIMEOUT) -> RunConfig:
    config = make_config(world_size, parallelism, stop={"steps": 1_000_000})
    return config.replace(health=HealthConfig(hang_timeout_seconds=timeout))


def diagnosis(pods: list[Pod], codes: list[int]) -> Diagnosis:
    """What the operator makes of the pods' ends."""
    words = [(pod.folder / "termination").read_text() for pod in pods]
    workers = [
        make_worker(i, state="Failed", replicas=len(pods), exit_code=code, termination_message=word)
        for i, (code, word) in enumerate(zip(codes, words, strict=True))
    ]
    found = diagnose(workers, 1, 0, workers[0].finished_at)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_ends_all_pods_and_is_blamed(start: Starter, stopped: int) -> None:
    pods = start(endless(2), 2)
    pods[0].wait_for_step(3)
    began = time.monotonic()
    os.kill(pods[stopped].ranks()[0], signal.SIGSTOP)
    codes = finish(pods, 15)
    assert time.monotonic() - began < SOON
    assert codes == [constants.EXIT_HANG] * 2, [pod.stderr for pod in pods]
    found = diagnosis(pods, codes)
    assert (found.failure.rank, found.failure.reason, found.counts) == (stopped, "Hang", True)
    assert found.failure.pod == f"job-1-{stopped}"
    assert "does not answer: it is stopped" in found.failure.message
    other, word = pods[1 - stopped], pods[1 - stopped].word
    assert word is not None
    assert word.hang is not None
    assert not word.hang.no_stack_trace
    assert "Current thread" in other.stderr
    assert "train.py" in other.stderr
    assert "Current thread" not in pods[stopped].stderr


@pytest.mark.parametrize(("pods", "procs"), [(2, 1), (1, 2)])
def test_a_rank_that_sleeps_says_where_and_is_blamed(start: Starter, pods: int, procs: int) -> None:
    started = start(endless(2), pods, procs, entry=f"{FAULTS}:hang_in_rank_1")
    codes = finish(started, 60)
    assert codes == [constants.EXIT_HANG] * pods, [pod.stderr for pod in started]
    found = diagnosis(started, codes)
    assert (found.failure.rank, found.failure.step, found.failure.reason) == (1, 3, "Hang")
    assert found.failure.message.startswith("rank 1 gave no sign of life for ")
    assert "rank 1: step 3, end of the step, " in found.failure.message
    assert "faults.py:" in found.failure.message
    log = started[-1].stderr
    assert "in <lambda>" in log
    assert "in faulty" in log
    if pods == 1:
        assert "rank 0: step 3, forward and backward, " in found.failure.message


def test_a_pod_that_finds_out_a_little_later_still_says_so(start: Starter) -> None:
    """Rank 0 would lose its peer, and end without a word of where it was, if rank 1 were killed at once."""
    pods = start(endless(2), 2, entry=f"{FAULTS}:hang_in_rank_1_and_find_out_late")
    codes = finish(pods, 60)
    assert codes == [constants.EXIT_HANG] * 2, [pod.stderr for pod in pods]
    assert diagnosis(pods, codes).failure.rank == 1


def test_a_stopped_rank_of_several_in_a_pod_is_blamed(start: Starter) -> None:
    (pod,) = start(endless(2), 1, 2)
    pod.wait_for_step(3)
    os.kill(pod.ranks()[0], signal.SIGSTOP)
    assert finish([pod], 15) == [constants.EXIT_HANG]
    assert pod.word is not None
    assert pod.word.rank == 0
    assert "rank 0: step " in pod.word.message
    assert ", silent; rank 1: step " in pod.word.message


@pytest.mark.parametrize("stopped", [0, 2])
def test_worker_or_parameter_server_is_blamed(start: Starter, stopped: int) -> None:
    pods = start(endless(2, {"data": {"mode": "parameterServer"}}), 2)
    pods[0].wait_for_step(3)
    os.kill(pods[stopped].ranks()[0], signal.SIGSTOP)
    codes = finish(pods, 15)
    found = diagnosis(pods, codes)
    assert (found.failure.rank, found.failure.reason) == (stopped, "Hang"), [pod.stderr for pod in pods]
    server = pods[2].word
    assert (server is not None and server.hang is not None) == (stopped == 2), "it only waits for its workers"


def test_a_pod_that_hangs_can_be_stopped(start: Starter) -> None:
    """With auto, nothing is done for a minute at least."""
    pods = start(endless(2, timeout=None), 2, env={constants.ENV_GRACE: "3"})
    pods[0].wait_for_step(3)
    os.kill(pods[1].ranks()[0], signal.SIGSTOP)
    time.sleep(TIMEOUT + 1)
    for pod in pods:
        os.kill(pod.pid, signal.SIGTERM)
    assert finish(pods, 15) == [143, 143]
    assert pods[0].stderr == ""


def test_where_ranks_are_can_be_asked_at_any_time(start: Starter) -> None:
    (pod,) = start(endless(2), 1, 2)
    pod.wait_for_step(3)
    os.kill(pod.ranks()[1], signal.SIGUSR1)
    time.sleep(1)
    os.kill(pod.pid, signal.SIGTERM)
    assert finish([pod], 15) == [143]
    assert pod.stderr.startswith("rank 1 is here:\n")
    assert "in run" in pod.stderr
