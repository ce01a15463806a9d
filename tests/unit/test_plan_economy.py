"""The economy of restarts: nothing restarts for ever at full speed, and a good run pays for what was before it."""

import math
from typing import Any

import pytest

from tests.builders import NOW, make_job, make_pod, make_progress, make_worker, termination_message, trainer_spec
from tests.support import kubelet
from tests.support.story import Story, running
from trainyard.protocol import constants
from trainyard.resource.status import Failure, Phase, Reason
from trainyard_operator.lifecycle.actions import CreateWorkers
from trainyard_operator.lifecycle.backoff import uniform
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import WorkerPod, observe_pod
from trainyard_operator.lifecycle.restart import MAX_REFUSING_NODES
from trainyard_operator.manifests.pod import build_pod


def failure(story: Story) -> Failure:
    assert story.status.last_failure is not None
    return story.status.last_failure


def seen(status: kubelet.Status, *, attempt: int = 1, node: str = "node-1") -> WorkerPod:
    return observe_pod(make_pod(make_job(), status=status, attempt=attempt, node=node))


def refused(story: Story, *, reason: str = "OutOfcpu", node: str = "node-1") -> Story:
    """The kubelet refuses the first pod of the current attempt."""
    number = story.status.attempt
    pod = seen({"phase": "Failed", "reason": reason, "message": "Pod was rejected: no"}, attempt=number, node=node)
    story.see(pod, make_worker(1, attempt=number, state="Pending")).settle()
    return story


def waited(story: Story) -> float:
    """Let the old pods end, and wait until the group is created again. Returns the seconds."""
    wait = 0.0
    for _ in range(10):
        step = story.see().settle()
        if any(isinstance(action, CreateWorkers) for action in step.actions):
            return wait
        assert step.wake_after is not None
        wait += step.wake_after
        story.later(math.ceil(step.wake_after))
    raise AssertionError("the group is never created again")


# --- refusals of the kubelet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        *("OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfnvidia.com/gpu", "TopologyAffinityError"),
        *("UnexpectedAdmissionError", "NodeAffinity", "NodePorts", "SMTAlignmentError"),
    ],
)
def test_a_pod_that_its_node_refuses_does_not_count_and_the_next_attempt_avoids_the_node(reason: str) -> None:
    story = Story(make_job(restartPolicy={"maxRestarts": 0}))
    story.settle()
    refused(story, reason=reason, node="node-7")
    assert (story.status.attempt, story.status.restarts_counted, story.status.disruptions) == (2, 0, 1)
    assert (failure(story).reason, failure(story).node, failure(story).exit_code) == (reason, "node-7", None)
    assert story.status.refusing_nodes == ("node-7",)
    affinity = build_pod(story.job, 2, 0, trainer_image="")["spec"]["affinity"]["nodeAffinity"]
    [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-7"]}]}


def test_a_node_is_avoided_until_the_group_has_run() -> None:
    story = Story()
    story.settle()
    refused(story)
    waited(story)
    story.all("Running").settle()
    assert (story.phase, story.status.refusing_nodes) == (Phase.RUNNING, ())


def test_refusing_nodes_are_used_again_if_the_group_cannot_be_scheduled_without_them() -> None:
    story = Story()
    story.settle()
    refused(story)
    waited(story)
    story.all("Pending", blocker=SchedulingBlocker(Reason.UNSCHEDULABLE, "no node")).settle()
    story.later(61).settle()
    assert (story.status.attempt, story.status.refusing_nodes) == (3, ())
    assert "without the nodes that refused its pods: node-1" in story.condition("Restarting").message


def test_only_the_latest_refusing_nodes_are_remembered() -> None:
    story = Story()
    story.settle()
    for number in range(MAX_REFUSING_NODES + 3):
        refused(story, node=f"node-{number}")
        waited(story)
    assert len(story.status.refusing_nodes) == MAX_REFUSING_NODES
    assert story.status.refusing_nodes[-1] == f"node-{MAX_REFUSING_NODES + 2}"


def test_a_pod_that_ran_before_it_was_evicted_was_not_refused() -> None:
    worker = seen({**kubelet.ended(NOW, 137), "reason": "Evicted", "message": "The node was low on resource: memory."})
    assert (worker.disrupted, worker.rejected) == (True, False)


def test_a_container_whose_status_is_lost_is_the_nodes_fault() -> None:
    assert seen(kubelet.ended(NOW, 137, reason="ContainerStatusUnknown")).disrupted


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
        'Container worker exceeded its local ephemeral storage limit "2Gi". ',
    ],
)
def test_a_pod_evicted_for_its_own_limit_is_the_programs_failure(message: str) -> None:
    status = {**kubelet.ended(NOW, 137), "phase": "Failed", "reason": "Evicted", "message": message}
    story = running(restartPolicy={"maxRestarts": 0}).see(seen(status), make_worker(1))
    story.settle()
    assert (story.phase, failure(story).reason) == (Phase.FAILED, "StorageLimitExceeded")
    assert failure(story).message == message.strip()


# --- the backoff ----------------------------------------------------------------------------------------------


def test_restarts_that_do_not_count_wait_longer_each_time_too() -> None:
    story = Story()
    story.settle()
    waits = []
    for _ in range(12):
        refused(story)
        waits.append(waited(story))
    assert all(0.75 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[:9]))
    assert all(225 <= wait <= 300 for wait in waits[9:]), "at most backoff.maxSeconds"
    assert story.status.restarts_counted == 0


def test_a_rule_without_a_limit_waits_longer_each_time_too() -> None:
    rules = [{"onExitCodes": [1], "action": "RestartIgnoringLimit"}]
    story = running(restartPolicy={"maxRestarts": 0, "maxDisruptions": 0, "rules": rules})
    waits = []
    for _ in range(4):
        story.see(make_worker(0, attempt=story.status.attempt, state="Failed")).settle()
        waits.append(waited(story))
        story.all("Running").settle()
    assert [round(wait / 2**n + 0.124) for n, wait in enumerate(waits)] == [1, 1, 1, 1]
    assert (story.status.restarts, story.status.disruptions) == (4, 0)


def crash_after(story: Story, seconds: float, step: int | None = None) -> float:
    """The group runs for some time and makes steps, then it fails. Returns how long the next attempt waits."""
    story.all("Running").settle()
    story.later(seconds)
    attempt = story.status.attempt
    if step is not None:
        story.progress = make_progress(step, attempt=attempt, updated_at=story.now)
        story.settle()
    story.see(make_worker(0, attempt=attempt, state="Failed"), make_worker(1, attempt=attempt)).settle()
    return waited(story)


def test_new_steps_stop_the_growth_and_a_good_run_resets_it() -> None:
    story = running(trainer=trainer_spec(), restartPolicy={"maxRestarts": 99})
    for expected in (1, 2, 4, 8):
        crash_after(story, 5)
        assert 2 ** (story.status.restarts_without_progress - 1) == expected
    crash_after(story, 5, step=10)
    assert story.status.restarts_without_progress == 4, "new steps: no longer, but no shorter"
    crash_after(story, 5, step=5)
    assert story.status.restarts_without_progress == 5, "those steps had been made before"
    crash_after(story, 600, step=20)
    assert story.status.restarts_without_progress == 1, "a good run"


def test_a_long_run_without_a_step_is_no_good_run() -> None:
    story = running(trainer=trainer_spec(), restartPolicy={"maxRestarts": 99})
    crash_after(story, 1000)
    crash_after(story, 1000)
    assert story.status.restarts_without_progress == 2


def test_of_a_program_without_metrics_only_the_duration_is_known() -> None:
    story = running(restartPolicy={"maxRestarts": 99, "backoff": {"resetSeconds": 50}})
    crash_after(story, 49)
    crash_after(story, 49)
    assert story.status.restarts_without_progress == 2
    crash_after(story, 50)
    assert story.status.restarts_without_progress == 1


def test_jobs_that_fail_together_do_not_restart_together() -> None:
    shares = [uniform(f"uid-{number}/2") for number in range(1000)]
    assert all(0 <= share < 1 for share in shares)
    assert 0.45 < sum(shares) / len(shares) < 0.55
    assert len({round(share, 2) for share in shares}) > 90


# --- the limit of disruptions ---------------------------------------------------------------------------------


def test_too_many_disruptions_without_a_good_run_fail_the_job() -> None:
    story = Story(make_job(restartPolicy={"maxRestarts": 0, "maxDisruptions": 2}))
    story.settle()
    for _ in range(2):
        refused(story)
        waited(story)
    refused(story)
    assert story.phase == Phase.FAILED
    assert story.condition("Failed").reason == "DisruptionLimitReached"
    assert story.condition("Failed").message.endswith("; restartPolicy.maxDisruptions is 2")
    assert (story.status.restarts, story.status.disruptions) == (2, 2)


def test_a_good_run_resets_the_disruptions() -> None:
    story = running(restartPolicy={"maxDisruptions": 1})
    for _ in range(5):
        attempt = story.status.attempt
        story.later(600).see(make_worker(1, attempt=attempt)).settle()
        assert (story.phase, story.status.disruptions) == (Phase.RESTARTING, 1)
        waited(story)
        story.all("Running").settle()


# --- what can never start -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "torchrnu": executable file not found in $PATH: unknown',
        "OCI runtime create failed: crun: executable file `/app/train` not found: No such file or directory",
        'unable to start container process: exec: "/app/train.py": permission denied: unknown',
        "exec /app/train: exec format error",
        "no-such-program: No such file or directory",
    ],
)
def test_a_command_that_does_not_exist_fails_the_job_at_once(message: str) -> None:
    status = kubelet.ended(NOW, 128, reason="StartError", message=message)
    story = running(restartPolicy={"maxRestarts": 3}).see(seen(status), make_worker(1))
    story.settle()
    assert (story.phase, story.condition("Failed").reason) == (Phase.FAILED, "ContainerCannotStart")
    assert failure(story).reason == "StartError"


def test_a_container_that_its_node_cannot_start_is_restarted_elsewhere() -> None:
    message = "runc create failed: running prestart hook #0: nvidia-container-cli: initialization error: timed out"
    status = kubelet.ended(NOW, 128, reason="StartError", message=message)
    story = running().see(seen(status, node="node-7"), make_worker(1))
    story.settle()
    assert (story.phase, story.status.restarts_counted) == (Phase.RESTARTING, 1)
    assert story.status.refusing_nodes == ("node-7",)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (kubelet.waiting("InvalidImageName", 'couldn\'t parse image name "a b"'), "InvalidImageName"),
        (kubelet.waiting("CreateContainerError", "no command specified"), "StartError"),
    ],
)
def test_a_container_that_can_never_start_fails_the_job_at_once(status: kubelet.Status, reason: str) -> None:
    story = Story()
    story.settle()
    story.see(seen(status), make_worker(1, state="Pending")).settle()
    assert (story.phase, story.condition("Failed").reason) == (Phase.FAILED, "ContainerCannotStart")
    assert failure(story).reason == reason


def test_a_rule_may_restart_what_could_never_start() -> None:
    rules = [{"onReasons": ["StartError"], "action": "Restart"}]
    story = running(restartPolicy={"rules": rules})
    story.see(seen(kubelet.ended(NOW, 128, reason="StartError", message="x: Permission denied")), make_worker(1)).step()
    assert story.phase == Phase.RESTARTING


# --- the final checkpoint -------------------------------------------------------------------------------------


def test_a_job_whose_final_state_was_not_saved_has_failed() -> None:
    words = termination_message(rank=0, exception="FinalCheckpointFailed", message="disk is full", step=100)
    fields: dict[str, Any] = {"exit_code": constants.EXIT_FINAL_CHECKPOINT_FAILED, "termination_message": words}
    story = running(trainer=trainer_spec())
    story.see(make_worker(0, state="Failed", **fields), make_worker(1, state="Succeeded")).settle()
    assert (story.phase, story.condition("Failed").reason) == (Phase.FAILED, "FinalCheckpointFailed")
    assert "FinalCheckpointFailed: disk is full" in story.condition("Failed").message


def test_the_same_exit_code_of_another_program_is_an_ordinary_failure() -> None:
    story = running().see(make_worker(0, state="Failed", exit_code=81), make_worker(1))
    story.step()
    assert story.phase == Phase.RESTARTING
