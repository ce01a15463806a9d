"""All pods of a job that hangs say so: the operator names the one that the others wait for."""

from itertools import permutations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import after, last_words, make_worker
from tests.support.story import Story, running
from trainyard.protocol import constants
from trainyard.protocol.termination import Hang, TerminationMessage
from trainyard.resource.status import Phase
from trainyard_operator.lifecycle.diagnosis import diagnose
from trainyard_operator.lifecycle.observation import Worker

PASSES, DATA = 6, 5


def hung(
    index: int, seconds: float = 0, *, phase: int = PASSES, step: int = 7, silent: bool = False, at: float = 1000.0
) -> Worker:
    """A pod of one rank that has ended so many seconds after the start."""
    words = last_words(
        rank=index,
        exception="Hang",
        message=f"rank {index} gave no sign of life",
        step=step,
        hang=Hang(no_stack_trace=silent, phase=phase, last_heartbeat=at),
    )
    fields: dict[str, Any] = {"exit_code": constants.EXIT_HANG, "reason": "Error", "last_words": words}
    return make_worker(index, state="Failed", finished_at=after(seconds), **fields)


def blamed(*workers: Worker) -> int | None:
    """The rank; the order in which the pods are seen must not matter."""
    ranks = set()
    for order in permutations(workers):
        found = diagnose(order, 1, 0, after(0))
        assert found is not None
        assert (found.failure.reason, found.counts, found.hopeless) == ("Hang", True, False)
        assert found.failure.pod == f"job-1-{found.failure.rank}"
        ranks.add(found.failure.rank)
    assert len(ranks) == 1
    return ranks.pop()


def test_one_that_does_not_answer_is_blamed_first() -> None:
    assert blamed(hung(0, step=1), hung(1, 9, silent=True, step=8, at=2000), hung(2)) == 1


def test_then_one_that_is_behind_in_steps() -> None:
    assert blamed(hung(0, phase=DATA), hung(1, step=6, at=2000), hung(2)) == 1


def test_then_one_that_is_behind_in_its_step() -> None:
    assert blamed(hung(0), hung(1), hung(2, 9, phase=DATA, at=2000)) == 2


def test_then_the_longest_without_a_sign_of_life() -> None:
    assert blamed(hung(0), hung(1, 9, at=999.9), hung(2)) == 1


def test_then_the_lowest_rank() -> None:
    assert blamed(hung(2), hung(1), hung(0)) == 0


def test_one_that_lost_a_peer_meanwhile_is_no_cause() -> None:
    lost = last_words(rank=0, exception="RuntimeError", step=5, peer_lost=True)
    found = diagnose([make_worker(0, state="Failed", last_words=lost, finished_at=after(-1)), hung(1)], 1, 0, after(0))
    assert found is not None
    assert found.failure.rank == 1


def test_a_crash_before_is_the_cause() -> None:
    crash = make_worker(2, state="Failed", reason="OOMKilled", finished_at=after(-1))
    found = diagnose([hung(0), hung(1, silent=True), crash], 1, 0, after(0))
    assert found is not None
    assert (found.failure.pod, found.failure.reason) == ("job-1-2", "OOMKilled")


def test_a_pod_that_is_taken_away_is_the_cause() -> None:
    found = diagnose([hung(0, silent=True), make_worker(1, disrupted=True, reason="Evicted")], 1, 0, after(0))
    assert found is not None
    assert (found.failure.pod, found.counts) == ("job-1-1", False)


def test_the_first_to_say_so_waits_for_the_others() -> None:
    story = running().later(10).see(hung(0, 9), make_worker(1))
    step = story.step()
    assert (story.phase, step.actions) == (Phase.RUNNING, ())
    assert step.wake_after is not None
    assert 0 < step.wake_after <= 3
    story.later(1).see(hung(0, 9), hung(1, 11, phase=DATA)).step()
    assert_restarted(story, rank=1)


def test_a_silent_rank_and_the_last_one_wait_for_nobody() -> None:
    story = running().later(10).see(hung(0, 9, silent=True), make_worker(1))
    story.step()
    assert_restarted(story, rank=0)


def test_others_are_not_waited_for_without_end() -> None:
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
def test_what_a_pod_says_of_its_hang_is_heard(hang: Hang, rank: int | None, step: int | None) -> None:
    said = TerminationMessage(rank=rank, exception="Hang", step=step, hang=hang)
    assert TerminationMessage.decode(said.encode()) == said


def test_a_hang_at_no_time_is_no_message_of_ours() -> None:
    assert TerminationMessage.decode('{"hang": {"phase": 3, "lastBeat": NaN}}') is None
    assert TerminationMessage.decode('{"hang": {"phase": -3, "lastBeat": 1}}') is None
