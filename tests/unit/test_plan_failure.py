"""Failures: what is restarted, what counts, which failure is the first, and when the job fails."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.builders import NOW, after, make_worker, termination_message
from tests.support.story import Story, running
from trainyard.resource.restart import Backoff
from trainyard.resource.status import Failure, Phase, TrainingJobStatus
from trainyard_operator.lifecycle.actions import CreateWorkers, DeleteWorkers
from trainyard_operator.lifecycle.backoff import backoff_seconds
from trainyard_operator.lifecycle.diagnosis import NO_EXPLANATION
from trainyard_operator.lifecycle.observation import WorkerPod


def failure(story: Story) -> Failure:
    assert story.status.last_failure is not None
    return story.status.last_failure


def crash(index: int = 0, *, attempt: int = 1, **fields: Any) -> WorkerPod:
    return make_worker(index, attempt=attempt, state="Failed", **fields)


def test_one_failed_worker_restarts_the_group_as_a_new_attempt() -> None:
    story = running().see(crash(0), make_worker(1))
    decision = story.step()
    assert (decision.actions, decision.wake_after) == ((), 0)
    assert (story.status.attempt, story.status.restarts, story.status.restarts_counted) == (2, 1, 1)
    assert story.phase == Phase.RESTARTING
    assert story.settle().actions == (DeleteWorkers(story.workers),)
    story.see(make_worker(1, terminating=True))
    assert story.settle().actions == (), "a pod of the old attempt is still there"
    assert story.later(10).see().settle().actions == (CreateWorkers(2, (0, 1)),)
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    assert story.condition("Restarting").status == "False"


def test_the_first_failure_is_recorded_with_every_detail() -> None:
    words = termination_message(rank=3, exception="FloatingPointError", message="loss is nan", step=41)
    story = running().see(crash(1, exit_code=1, node="node-7", termination_message=words), make_worker(0))
    story.later(5).step()
    assert failure(story) == Failure(
        attempt=1,
        pod="job-1-1",
        node="node-7",
        rank=3,
        exit_code=1,
        reason="FloatingPointError",
        message="loss is nan",
        step=41,
        at=after(5),
    )
    assert story.events[-1].message == (
        "attempt 1: pod job-1-1 failed (rank 3, node node-7, exit code 1, step 41): FloatingPointError: loss is nan; "
        "restarting the group as attempt 2 (restart 1 of 3)"
    )


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        (
            {"exit_code": 1, "reason": "Error", "termination_message": "Traceback\n  File x\nKeyError: 'a'\n"},
            "KeyError",
            "'a'",
        ),
        # Its process was killed: the exception in the log was caught before.
        ({"exit_code": 137, "termination_message": "KeyError: 'a'\n"}, "SIGKILL", "'a'"),
        # The final figures of a reporter have replaced the end of the log.
        ({"exit_code": 1, "termination_message": termination_message(rank=0, step=9)}, "Error", NO_EXPLANATION),
        ({"exit_code": 78, "termination_message": termination_message(rank=0, step=9)}, "Error", NO_EXPLANATION),
        ({"exit_code": 137, "reason": "OOMKilled"}, "OOMKilled", ""),
        ({"exit_code": 139, "reason": "Error"}, "SIGSEGV", ""),
        (
            {"exit_code": 137, "reason": "Error", "termination_message": '{"message": "step 4", "x": 1}'},
            "SIGKILL",
            "step 4",
        ),
        ({"exit_code": 137, "termination_message": '{"x": 1}'}, "SIGKILL", '{"x": 1}'),
        ({"exit_code": 137, "termination_message": '{"message": 1'}, "SIGKILL", '{"message": 1'),
        ({"exit_code": 255, "reason": "Error"}, "Error", ""),
        ({"exit_code": 128, "reason": "ContainerCannotRun"}, "ContainerCannotRun", ""),
        ({"exit_code": 3}, "Error", ""),
    ],
)
def test_a_failure_without_a_trainer_message_is_named_by_what_the_kubelet_reports(
    fields: dict[str, Any], reason: str, message: str
) -> None:
    story = running().see(crash(0, **fields), make_worker(1))
    story.step()
    assert (failure(story).reason, failure(story).message) == (reason, message)
    assert story.status.restarts_counted == 1


# --- the budget -----------------------------------------------------------------------------------------------


def fail_once(story: Story) -> None:
    story.all("Running").settle()
    story.see(*(crash(i, attempt=story.status.attempt) for i in range(2))).settle()
    if story.phase != Phase.FAILED:
        story.see().later(1000).settle()


def test_the_job_fails_when_the_restart_limit_is_reached() -> None:
    story = running(restartPolicy={"maxRestarts": 2})
    for _ in range(3):
        fail_once(story)
    assert story.phase == Phase.FAILED
    assert (story.status.restarts, story.status.restarts_counted, story.status.attempt) == (2, 2, 3)
    assert story.condition("Failed").reason == "RestartLimitReached"
    assert story.condition("Failed").message.endswith("; restartPolicy.maxRestarts is 2")
    assert failure(story).attempt == 3
    assert story.condition("Restarting").status == "False"


def test_a_limit_of_zero_means_no_restart_at_all() -> None:
    story = running(restartPolicy={"maxRestarts": 0}).see(crash(0), make_worker(1))
    story.settle()
    assert (story.phase, story.status.attempt) == (Phase.FAILED, 1)
    assert story.condition("Failed").reason == "WorkerFailed"
    assert "restartPolicy.maxRestarts" not in story.condition("Failed").message


def test_a_configuration_that_can_never_work_fails_at_once() -> None:
    words = termination_message(
        rank=0, exception="ValueError", message="spec.trainer.data.path: no such file; mount it"
    )
    story = running().see(crash(0, exit_code=78, termination_message=words), make_worker(1))
    story.settle()
    assert story.phase == Phase.FAILED
    assert story.condition("Failed").reason == "InvalidConfig"
    assert story.condition("Failed").message == "spec.trainer.data.path: no such file; mount it"
    assert failure(story).reason == "InvalidConfig"


def test_the_same_exit_code_of_a_users_own_program_is_an_ordinary_failure() -> None:
    story = running().see(crash(0, exit_code=78), make_worker(1))
    story.step()
    assert story.phase == Phase.RESTARTING


@pytest.mark.parametrize(
    "lost",
    [
        make_worker(
            0, state="Failed", exit_code=None, disrupted=True, reason="Evicted", termination_message="low on memory"
        ),
        make_worker(0, state="Failed", exit_code=137, disrupted=True, reason="Error"),
        make_worker(0, state="Running", disrupted=True),
        make_worker(0, state="Running", terminating=True),
        make_worker(0, state="Pending", terminating=True),
        make_worker(0, state="Failed", exit_code=143, terminating=True),
    ],
    ids=["evicted", "preempted", "about to be preempted", "deleted", "deleted before it ran", "deleted and ended"],
)
def test_a_pod_removed_by_the_cluster_does_not_count(lost: WorkerPod) -> None:
    story = running(restartPolicy={"maxRestarts": 0}).see(lost, make_worker(1))
    story.step()
    assert (story.phase, story.status.attempt) == (Phase.RESTARTING, 2)
    assert (story.status.restarts, story.status.restarts_counted) == (1, 0)
    assert story.condition("Restarting").reason == "Disrupted"
    assert failure(story).pod == "job-1-0"


def test_a_pod_that_has_vanished_from_a_running_group_does_not_count() -> None:
    story = running(restartPolicy={"maxRestarts": 0}).see(make_worker(1))
    story.step()
    assert (story.status.attempt, story.status.restarts_counted) == (2, 0)
    assert failure(story).reason == "WorkerLost"


def test_a_group_of_which_nothing_is_left_is_restarted_and_the_attempt_is_named() -> None:
    story = running().see()
    story.step()
    assert story.status.attempt == 2
    assert failure(story).attempt == 1
    assert failure(story).message.startswith("2 worker pods are gone")


def test_a_pod_that_vanished_before_the_group_ran_is_created_again() -> None:
    story = Story()
    story.settle()
    story.see(make_worker(0, state="Pending"))
    assert story.settle().actions == (CreateWorkers(1, (1,)),)
    assert story.status.restarts == 0


def test_a_deleted_pod_is_the_cause_of_its_peers_failures() -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    story.see(crash(0, finished_at=after(1)), make_worker(1, terminating=True)).settle()
    assert story.phase == Phase.RESTARTING
    assert story.status.restarts_counted == 0


def test_deleting_a_pod_that_has_succeeded_does_no_harm() -> None:
    story = running().see(make_worker(0, state="Succeeded", terminating=True), make_worker(1, state="Succeeded"))
    story.settle()
    assert story.phase == Phase.SUCCEEDED


# --- lost nodes -----------------------------------------------------------------------------------------------


def test_a_pod_that_does_not_end_is_deleted_by_force_once_it_is_overdue() -> None:
    story = running().see(make_worker(0, terminating=True, node="node-7"), make_worker(1))
    assert story.settle().actions == (DeleteWorkers((story.workers[1],)),), "its peers end as ever"
    lost = story.workers[0]
    step = story.see(lost).later(1).settle()
    assert (step.actions, step.wake_after) == ((), 60), "30 s of grace, 30 s more, and 1 s to be past them"
    assert story.later(59).settle().actions == ()
    step = story.later(1).settle()
    assert step.actions == (DeleteWorkers((lost,), force=True),)
    assert story.events[-1].message == (
        "pod job-1-0 has not terminated 30 s after its grace period, so node node-7 is considered lost; deleting the "
        "pod by force"
    )
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1)),)
    assert story.status.restarts_counted == 0


def test_each_pod_has_its_own_grace_period() -> None:
    story = running()
    story.all("Running", terminating=True).settle()
    slow = make_worker(1, deletion_deadline=after(3600))
    step = story.see(make_worker(0, terminating=True), slow).later(61).settle()
    assert step.actions == (DeleteWorkers((story.workers[0],), force=True),)
    assert step.wake_after == 3600 - 61 + 30 + 1


@pytest.mark.parametrize("why", ["suspended", "finished"])
def test_nothing_is_deleted_by_force_while_no_attempt_waits_for_it(why: str) -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    story.edit(suspend=True) if why == "suspended" else story.see(crash(0), make_worker(1))
    story.settle()
    step = story.see(make_worker(1, terminating=True)).later(3600).settle()
    assert (step.actions, step.wake_after) == ((), None)


# --- rules ----------------------------------------------------------------------------------------------------


def ruled(*rules: dict[str, Any], **policy: Any) -> Story:
    """A running job with these rules."""
    return running(restartPolicy={"maxRestarts": 1, "backoff": {"initialSeconds": 0}, **policy, "rules": list(rules)})


def test_a_rule_for_an_exit_code_restarts_without_limit() -> None:
    story = ruled({"onExitCodes": [41, 42], "action": "RestartIgnoringLimit"})
    for _ in range(5):
        fail_once_by(story, exit_code=42)
    assert (story.phase, story.status.restarts, story.status.restarts_counted) == (Phase.RESTARTING, 5, 0)
    assert story.condition("Restarting").reason == "WorkerFailed"
    assert (
        "; restartPolicy.rules[0] says RestartIgnoringLimit; restarting the group"
        in story.condition("Restarting").message
    )
    fail_once_by(story, exit_code=1)
    assert story.status.restarts_counted == 1, "other failures count as ever"


def fail_once_by(story: Story, **fields: Any) -> None:
    """One worker fails; what is left of the group goes away."""
    story.all("Running").settle()
    attempt = story.status.attempt
    story.see(crash(0, attempt=attempt, **fields), make_worker(1, attempt=attempt)).settle()
    story.see().later(1).settle()


def test_a_rule_that_fails_ends_the_job_at_once_and_is_named() -> None:
    story = ruled(
        {"onExitCodes": [9], "action": "Restart"}, {"onReasons": ["ValueError"], "action": "Fail"}, maxRestarts=5
    )
    words = termination_message(rank=0, exception="ValueError", message="no such column", step=3)
    fail_once_by(story, termination_message=words)
    assert (story.phase, story.status.attempt) == (Phase.FAILED, 1)
    assert story.condition("Failed").reason == "RestartRule"
    assert story.condition("Failed").message == (
        "attempt 1: pod job-1-0 failed (rank 0, exit code 1, step 3): ValueError: no such column; "
        "restartPolicy.rules[1] says Fail"
    )
    assert failure(story).reason == "ValueError"


def test_the_first_rule_that_matches_decides() -> None:
    story = ruled(
        {"onReasons": ["OOMKilled"], "action": "RestartIgnoringLimit"}, {"onExitCodes": [137], "action": "Fail"}
    )
    fail_once_by(story, exit_code=137, reason="OOMKilled")
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 0)
    fail_once_by(story, exit_code=137)
    assert story.phase == Phase.FAILED
    assert "restartPolicy.rules[1] says Fail" in story.condition("Failed").message


def test_a_rule_may_count_a_pod_removed_by_the_cluster() -> None:
    story = ruled({"onReasons": ["Evicted"], "action": "Restart"})
    for _ in range(2):
        story.all("Running").settle()
        lost = crash(0, attempt=story.status.attempt, exit_code=None, disrupted=True, reason="Evicted")
        story.see(lost, make_worker(1, attempt=story.status.attempt)).settle()
        story.see().settle()
    assert (story.phase, story.status.restarts_counted) == (Phase.FAILED, 1)
    assert story.condition("Failed").reason == "RestartLimitReached"


def test_the_exit_code_of_a_removed_pod_is_not_that_of_the_program() -> None:
    story = ruled({"onExitCodes": [137], "action": "Fail"})
    preempted = crash(0, exit_code=137, disrupted=True, reason="Error")
    story.see(preempted, make_worker(1)).settle()
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 0)


def test_a_vanished_pod_has_a_reason_for_rules_too() -> None:
    story = ruled({"onReasons": ["WorkerLost"], "action": "Fail"}).see(make_worker(1))
    story.settle()
    assert story.condition("Failed").reason == "RestartRule"


def test_a_rule_comes_before_an_unrecoverable_failure() -> None:
    story = ruled({"onExitCodes": [78], "action": "RestartIgnoringLimit"})
    fail_once_by(
        story, exit_code=78, termination_message=termination_message(rank=0, message="spec.x: not mounted yet")
    )
    assert story.phase == Phase.RESTARTING


def test_a_rule_for_the_effect_of_a_failure_waits_for_the_cause_like_all_else() -> None:
    story = ruled({"onReasons": ["PeerLost"], "action": "Fail"}).later(10)
    story.see(effect(0, 9), make_worker(1)).step()
    assert story.phase == Phase.RUNNING
    story.later(1).see(effect(0, 9), crash(1, exit_code=5, finished_at=after(11))).step()
    assert (story.phase, failure(story).exit_code) == (Phase.RESTARTING, 5)


# --- cause before effect --------------------------------------------------------------------------------------


def effect(index: int, seconds: float) -> WorkerPod:
    words = termination_message(rank=index, exception="PeerLost", message="connection closed", peer_lost=True)
    return crash(index, termination_message=words, finished_at=after(seconds))


def test_an_effect_waits_for_its_cause() -> None:
    story = running().later(10).see(effect(0, 9), make_worker(1))
    step = story.step()
    assert (story.phase, step.actions, step.wake_after) == (Phase.RUNNING, (), 2)
    cause = crash(1, exit_code=137, reason="OOMKilled", finished_at=after(11))  # it ended later, by the kubelet's clock
    story.later(1).see(effect(0, 9), cause).step()
    assert (failure(story).pod, failure(story).reason) == ("job-1-1", "OOMKilled")


def test_an_effect_without_a_cause_is_the_failure_in_the_end() -> None:
    """At once if all peers have failed, else as late as the cluster may delete the pod of a peer on a lost node."""
    story = running().later(10).see(effect(0, 9), effect(1, 9))
    assert story.step().wake_after == 2
    story.later(2.5).step()
    assert (story.status.attempt, failure(story).reason) == (2, "PeerLost")
    story = running().later(10).see(effect(0, 9), make_worker(1))
    story.later(88).step()
    assert story.phase == Phase.RUNNING
    story.later(1).step()
    assert (story.status.attempt, story.status.restarts_counted) == (2, 1)


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_worker_whose_clock_is_wrong_delays_nothing(seconds: float) -> None:
    story = running().see(effect(0, seconds), make_worker(1))
    story.step()
    assert story.status.attempt == 2


def test_of_several_causes_the_first_is_the_failure() -> None:
    story = running().see(crash(0, exit_code=5, finished_at=after(4)), crash(1, exit_code=6, finished_at=after(3)))
    story.step()
    assert (failure(story).pod, failure(story).exit_code) == ("job-1-1", 6)


# --- backoff --------------------------------------------------------------------------------------------------


def test_a_restart_waits_for_the_backoff_and_then_happens() -> None:
    story = running(restartPolicy={"maxRestarts": 9, "backoff": {"initialSeconds": 20}})
    story.see(crash(0), make_worker(1)).settle()
    step = story.later(5).see().settle()
    assert step.actions == ()
    assert step.wake_after is not None
    assert 10 <= step.wake_after <= 15
    assert story.condition("Running").reason == "BackingOff"
    assert story.phase == Phase.RESTARTING
    assert story.later(15).settle().actions == (CreateWorkers(2, (0, 1)),)


def test_each_restart_in_a_row_waits_longer_up_to_a_limit() -> None:
    policy = Backoff(initial_seconds=2, factor=3, max_seconds=40)
    assert [backoff_seconds(policy, n) for n in range(1, 6)] == [2, 6, 18, 40, 40]


def test_a_policy_without_waits_does_not_restart_at_full_speed_for_ever() -> None:
    policy = Backoff(initial_seconds=0, max_seconds=0)
    assert [backoff_seconds(policy, n) for n in range(1, 12)] == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]


@given(
    policy=st.builds(
        Backoff,
        initial_seconds=st.integers(0, 86_400),
        max_seconds=st.integers(0, 86_400),
        factor=st.floats(1, 10),
    ),
    restarts=st.integers(0, 10_000),
    share=st.floats(0, 1),
)
def test_no_backoff_is_negative_or_too_long_or_overflows(policy: Backoff, restarts: int, share: float) -> None:
    longest = backoff_seconds(policy, restarts)
    assert 0.75 * longest <= backoff_seconds(policy, restarts, share) <= longest <= max(policy.max_seconds, 60)
    assert backoff_seconds(policy, restarts) <= backoff_seconds(policy, restarts + 1)


# --- rubbish --------------------------------------------------------------------------------------------------

rubbish = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.none() | st.integers(),
        "exception": st.none() | st.text(max_size=2000),
        "message": st.text(max_size=2000),
        "step": st.none() | st.integers(),
        "peerLost": st.booleans(),
        "progress": st.none() | st.fixed_dictionaries({}, optional={"step": st.integers(), "loss": st.floats()}),
    },
)


@given(words=st.text(max_size=3000) | rubbish, code=st.integers(0, 255), reason=st.text(max_size=50))
@example(words={"exception": "E" * 3000}, code=1, reason="")
@example(words={"rank": 10**30}, code=1, reason="")
def test_no_termination_message_keeps_a_job_from_ending(words: object, code: int, reason: str) -> None:
    """The status must be one that the API server takes: JSON, and within the limits of the schema."""
    text = words if isinstance(words, str) else json.dumps(words)
    story = running(restartPolicy={"maxRestarts": 0})
    story.all(
        "Failed" if code else "Succeeded", exit_code=code, reason=reason, termination_message=text, finished_at=NOW
    )
    story.later(60).settle()
    assert story.phase in (Phase.FAILED, Phase.SUCCEEDED)
    written = json.dumps(story.status.to_dict(), allow_nan=False)
    assert TrainingJobStatus.model_validate_json(written).phase == story.phase
