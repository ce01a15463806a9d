"""Pods with more containers than the worker: init containers, ordinary and native sidecars, ephemeral containers."""

from typing import Any

import pytest

from tests.builders import NOW, after, make_job, make_pod, make_worker
from tests.support import kubelet
from tests.support.story import Story, running
from trainyard.resource.status import Phase, Reason
from trainyard_operator.lifecycle.actions import CreateWorkers, DeleteWorkers
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState, observe_pod

RUNS = {"running": {"startedAt": kubelet.zulu(NOW)}}


def container(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "image": f"example.com/{name}", "state": state}


def ended(code: int, reason: str = "", message: str = "") -> dict[str, Any]:
    reason = reason or ("Error" if code else "Completed")
    return {"exitCode": code, "reason": reason, "message": message, "finishedAt": kubelet.zulu(NOW)}


def seen(status: kubelet.Status, *, native: tuple[str, ...] = ()) -> WorkerPod:
    """A pod with this status; `native`: names of its native sidecars."""
    pod = make_pod(make_job(), status=status)
    pod["spec"]["initContainers"] = [{"name": name, "restartPolicy": "Always"} for name in native]
    return observe_pod(pod)


def beside(status: kubelet.Status, phase: str, *sidecars: dict[str, Any]) -> kubelet.Status:
    """A worker's status in a pod with ordinary sidecars, which come first in the list."""
    return {**status, "phase": phase, "containerStatuses": [*sidecars, *status["containerStatuses"]]}


# --- who keeps a pod alive ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("state", [{"running": {}}, {"waiting": {"reason": "ImagePullBackOff"}}], ids=["runs", "waits"])
def test_a_sidecar_that_has_not_ended_keeps_its_pod_active(code: int, state: dict[str, Any]) -> None:
    worker = seen(beside(kubelet.ended(NOW, code), "Running", container("istio-proxy", **state)))
    assert worker.state is (WorkerState.FAILED if code else WorkerState.SUCCEEDED)
    assert (worker.active, worker.outlived, worker.ends_by_itself) == (True, True, False)


@pytest.mark.parametrize("kind", ["native", "ephemeral", "ordinary, ended"])
def test_other_containers_let_a_pod_end_by_itself(kind: str) -> None:
    status = {**kubelet.ended(NOW, 0), "phase": "Running"}
    if kind == "native":
        status["initContainerStatuses"] = [container("proxy", **RUNS)]
    elif kind == "ephemeral":
        status["ephemeralContainerStatuses"] = [container("debugger", **RUNS)]
    else:
        status = beside(status, "Running", container("logger", terminated=ended(0)))
    worker = seen(status, native=("proxy",))
    assert (worker.active, worker.outlived, worker.ends_by_itself) == (True, False, True)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_in_its_last_phase_holds_nothing(phase: str) -> None:
    worker = seen(beside(kubelet.ended(NOW, 0), phase, container("logger", terminated=ended(1))))
    assert (worker.active, worker.state) == (False, WorkerState.SUCCEEDED)


@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_a_finished_job_deletes_pods_that_a_sidecar_keeps_alive_and_leaves_the_others(end: str) -> None:
    story = running(restartPolicy={"maxRestarts": 0})
    kept_alive = make_worker(0, state=end, ended=False, outlived=True)
    about_to_end = make_worker(1, state=end, ended=False)
    step = story.see(kept_alive, about_to_end).settle()
    assert story.phase == end
    assert step.actions == (DeleteWorkers((kept_alive,)),)


# --- init containers ------------------------------------------------------------------------------------------


def init_failed(**fields: Any) -> kubelet.Status:
    """A pod whose second init container has failed."""
    waits = {"waiting": {"reason": "PodInitializing"}}
    status = kubelet._status("Failed", waits)
    return {**status, "initContainerStatuses": [container("copy", terminated=ended(0)), container("setup", **fields)]}


def test_a_failed_init_container_is_named_with_exit_code_and_message() -> None:
    worker = seen(init_failed(terminated=ended(3, message="disk\n  is \x1b[31mfull\n")))
    assert (worker.state, worker.container, worker.exit_code) == (WorkerState.FAILED, "setup", 3)
    assert (worker.reason, worker.termination_message) == ("InitContainerFailed", "disk is [31mfull")
    story = running(restartPolicy={"maxRestarts": 0}).see(worker, make_worker(1)).later(1)
    story.settle()
    failure = story.status.last_failure
    assert failure is not None
    assert (failure.container, failure.exit_code, failure.reason) == ("setup", 3, "InitContainerFailed")
    assert story.condition("Failed").message == (
        "attempt 1: pod job-1-0 failed (container setup, node node-1, exit code 3): InitContainerFailed: "
        "disk is [31mfull"
    )


def test_an_init_container_without_a_message_is_named_too() -> None:
    worker = seen(init_failed(terminated=ended(137, "OOMKilled")))
    assert (worker.reason, worker.termination_message) == ("OOMKilled", "init container setup failed; see its log")
    assert worker.trainer_message is None


def test_a_rule_matches_the_exit_code_of_an_init_container() -> None:
    rules = [{"onExitCodes": [3], "action": "RestartIgnoringLimit"}]
    story = running(restartPolicy={"maxRestarts": 0, "rules": rules})
    story.see(seen(init_failed(terminated=ended(3))), make_worker(1)).step()
    assert story.phase == Phase.RESTARTING


def test_the_message_of_an_init_container_is_no_message_of_the_trainer() -> None:
    worker = seen(init_failed(terminated=ended(1, message='{"rank": 3, "exception": "E", "peerLost": true}')))
    assert worker.trainer_message is None


# --- what keeps a container from starting ---------------------------------------------------------------------


@pytest.mark.parametrize("init", [True, False], ids=["init container", "sidecar"])
@pytest.mark.parametrize(
    ("waiting", "reason", "message"),
    [
        (
            {"reason": "ErrImageNeverPull", "message": "image is not present"},
            Reason.IMAGE_PULL_FAILED,
            "pod job-1-0, container other: cannot pull image example.com/other: image is not present; check its image "
            "in spec.workers.template, spec.imagePullSecrets and the registry",
        ),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'},
            Reason.CONTAINER_CONFIG,
            'pod job-1-0, container other: container cannot be created: secret "s" not found; check '
            "spec.workers.template",
        ),
        (
            {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"},
            Reason.CRASH_LOOP,
            "pod job-1-0, container other: exits again and again: back-off 10s restarting failed container; see its "
            "log, and check spec.workers.template",
        ),
    ],
)
def test_a_container_that_cannot_start_is_named(
    init: bool, waiting: dict[str, str], reason: Reason, message: str
) -> None:
    status = kubelet._status("Pending", {"waiting": {"reason": "PodInitializing" if init else "ContainerCreating"}})
    other = container("other", waiting=waiting)
    status = {**status, "initContainerStatuses": [other]} if init else beside(status, "Pending", other)
    worker = seen(status, native=("other",))
    assert worker.blocker is not None
    assert (worker.blocker.reason, worker.blocker.message) == (reason, message)
    story = Story()
    story.settle()
    story.see(worker, make_worker(1)).settle()
    assert (story.condition("Running").reason, story.condition("Running").message) == (
        reason,
        f"1 of 2 workers: {message}",
    )


def test_a_running_group_with_a_sidecar_that_cannot_start_is_degraded_until_it_does() -> None:
    blocked = seen(beside(kubelet.running(NOW), "Pending", container("log", waiting={"reason": "ErrImagePull"})))
    story = running().see(blocked, make_worker(1))
    story.settle()
    assert story.phase == Phase.RUNNING
    assert (story.condition("Degraded").status, story.condition("Degraded").reason) == ("True", "ImagePullFailed")
    assert "container log: cannot pull image" in story.condition("Degraded").message
    assert [e.reason for e in story.events].count("ImagePullFailed") == 1
    story.all("Running").settle()
    assert story.condition("Degraded").status == "False"


def test_a_pod_that_is_prepared_for_long_is_reported_with_what_to_check() -> None:
    status = kubelet.scheduled()
    status["conditions"][0]["lastTransitionTime"] = kubelet.zulu(NOW)
    creating = seen(status)
    assert creating.creating_since == NOW
    story = Story()
    story.settle()
    assert story.see(creating, make_worker(1)).later(1).settle().wake_after == 119
    assert story.condition("Running").reason == "WaitingForPods"
    story.later(119).settle()
    condition = story.condition("Running")
    assert condition.reason == "ContainerCreating"
    assert condition.message.startswith(
        "1 of 2 workers: pod job-1-0 has been starting on node node-1 for more than 120"
    )
    assert condition.message.endswith("see: kubectl describe pod job-1-0")
    before = story.status
    story.later(5000).settle()
    assert story.status == before, "it is said once"


def test_a_pod_that_waits_for_a_node_is_not_being_prepared() -> None:
    assert seen(kubelet.unschedulable()).creating_since is None
    assert seen(kubelet.running(after(0))).creating_since is None


def test_a_pending_pod_of_a_group_that_starts_again_is_created_once() -> None:
    story = Story()
    story.settle()
    stuck = make_worker(0, state="Pending", blocker=SchedulingBlocker(Reason.CRASH_LOOP, "no"))
    assert story.see(stuck).settle().actions == (CreateWorkers(1, (1,)),)
