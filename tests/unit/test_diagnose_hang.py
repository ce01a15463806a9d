"""All pods of a job that hangs say so: the operator names the one that the others wait for."""

from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import after, make_worker, termination_message
from tests.support.story import Story, running
from trainyard.protocol import constants
from trainyard.protocol.termination import Hang, TerminationMessage
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.diagnosis import diagnose
from trainyard_operator.lifecycle.observation import WorkerPod

PASSES, DATA = 6, 5


def hung(
    index: int, seconds: float = 0, *, phase: int = PASSES, step: int = 7, silent: bool = False, at: float = 1000.0
) -> WorkerPod:
    """A pod of one rank that has ended so many seconds after the start."""
    words = termination_message(
        rank=index,
        exception="Hang",
        message=f"rank {index} missed its heartbeat",
        step=step,
        hang=Hang(no_stack_trace=silent, phase=phase, last_heartbeat=at),
    )
    fields: dict[str, Any] = {"exit_code": constants.EXIT_HANG, "reason": "Error", "termination_message": words}
    return make_worker(index, state="Failed", finished_at=after(seconds), **fields)


def culprit(*workers: WorkerPod) -> int | None:
    """Return the rank of the failure, which must not depend on the order of the pods."""
    ranks = set()
    for permutation in permutations(workers):
        found = diagnose(permutation, 1, 0, after(0))
        assert found is not None
        assert (found.failure.reason, found.counts, found.unrecoverable) == ("Hang", True, False)
        assert found.failure.pod == f"job-1-{found.failure.rank}"
        ranks.add(found.failure.rank)
    assert len(ranks) == 1
    return ranks.pop()


def test_a_rank_that_does_not_answer_is_the_culprit() -> None:
    assert culprit(hung(0, step=1), hung(1, 9, silent=True, step=8, at=2000), hung(2)) == 1


def test_then_one_that_is_behind_in_steps() -> None:
    assert culprit(hung(0, phase=DATA), hung(1, step=6, at=2000), hung(2)) == 1


def test_then_one_that_is_behind_in_its_step() -> None:
    assert culprit(hung(0), hung(1), hung(2, 9, phase=DATA, at=2000)) == 2


def test_then_the_one_with_the_oldest_heartbeat() -> None:
    assert culprit(hung(0), hung(1, 9, at=999.9), hung(2)) == 1


def test_then_the_lowest_rank() -> None:
    assert culprit(hung(2), hung(1), hung(0)) == 0


def test_a_rank_that_lost_a_peer_is_no_cause() -> None:
    lost = termination_message(rank=0, exception="RuntimeError", step=5, peer_lost=True)
    found = diagnose(
        [make_worker(0, state="Failed", termination_message=lost, finished_at=after(-1)), hung(1)], 1, 0, after(0)
    )
    assert found is not None
    assert found.failure.rank == 1


def test_an_earlier_crash_is_the_cause() -> None:
    crash = make_worker(2, state="Failed", reason="OOMKilled", finished_at=after(-1))
    found = diagnose([hung(0), hung(1, silent=True), crash], 1, 0, after(0))
    assert found is not None
    assert (found.failure.pod, found.failure.reason) == ("job-1-2", "OOMKilled")


def test_a_removed_pod_is_the_cause() -> None:
    found = diagnose([hung(0, silent=True), make_worker(1, disrupted=True, reason="Evicted")], 1, 0, after(0))
    assert found is not None
    assert (found.failure.pod, found.counts) == ("job-1-1", False)


def test_the_first_report_of_a_hang_waits_for_the_others() -> None:
    story = running().later(10).see(hung(0, 9), make_worker(1))
    step = story.step()
    assert (story.phase, step.actions) == (Phase.RUNNING, ())
    assert step.wake_after is not None
    assert 0 < step.wake_after <= 3
    story.later(1).see(hung(0, 9), hung(1, 11, phase=DATA)).step()
    assert_restarted(story, rank=1)


def test_a_rank_that_does_not_answer_is_diagnosed_at_once() -> None:
    story = running().later(10).see(hung(0, 9, silent=True), make_worker(1))
    story.step()
    assert_restarted(story, rank=0)


def test_the_wait_for_other_pods_is_bounded() -> None:
    story = running().later(10).see(hung(0, 9), make_worker(1))
    story.step()
    story.later(2.5).step()
    assert_restarted(story, rank=0)


def assert_restarted(story: Story, rank: int) -> None:
    status = story.status
    assert (status.attempt, status.restarts_counted) == (2, 1)
    assert status.last_failure is not None
    assert (status.last_failure.rank, status.last_failure.reason, status.last_failure.step) == (rank, "Hang", 7)
    assert status.last_failure.exit_code == constants.EXIT_HANG


hangs = st.builds(
    lambda *fields: Hang(no_stack_trace=fields[0], phase=fields[1], last_heartbeat=fields[2]),
    *(st.booleans(), st.integers(0, 11), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(hangs, st.none() | st.integers(0, 100), st.none() | st.integers(0, 100))
def test_the_hang_message_of_a_pod_is_decoded(hang: Hang, rank: int | None, step: int | None) -> None:
    said = TerminationMessage(rank=rank, exception="Hang", step=step, hang=hang)
    assert TerminationMessage.decode(said.encode()) == said


def test_a_hang_with_an_infinite_time_is_no_trainer_message() -> None:
    assert TerminationMessage.decode('{"hang": {"phase": 3, "lastBeat": NaN}}') is None
    assert TerminationMessage.decode('{"hang": {"phase": -3, "lastBeat": 1}}') is None
