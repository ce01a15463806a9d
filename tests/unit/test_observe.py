"""What the operator reads from a pod, for each state in which a cluster may show one."""

from typing import Any

import pytest

from tests.builders import NOW, after, make_job, make_pod, termination_message
from tests.support import kubelet
from trainyard.protocol import constants
from trainyard.resource.status import Reason
from trainyard_operator.lifecycle.observation import WorkerPod, WorkerState, observe_pod


def seen(status: kubelet.Status, **pod: Any) -> WorkerPod:
    return observe_pod(make_pod(make_job(), status=status, **pod))


def test_a_pod_is_known_by_its_labels() -> None:
    worker = observe_pod(make_pod(make_job(replicas=7), 3, attempt=5, uid="u"))
    assert (worker.name, worker.uid, worker.attempt, worker.index, worker.replicas) == ("job-5-3", "u", 5, 3, 7)


def test_a_new_pod_is_pending() -> None:
    worker = seen({}, node=None)
    assert (worker.state, worker.blocker, worker.node, worker.active) == (WorkerState.PENDING, None, None, True)


def test_a_scheduled_pod_whose_container_is_being_made_is_pending() -> None:
    worker = seen(kubelet.scheduled())
    assert (worker.state, worker.blocker, worker.node) == (WorkerState.PENDING, None, "node-1")


@pytest.mark.parametrize("ready", [True, False])
def test_a_running_worker_may_be_ready_or_not(ready: bool) -> None:
    worker = seen(kubelet.running(NOW, ready=ready))
    assert (worker.state, worker.ready, worker.active) == (WorkerState.RUNNING, ready, True)


def test_a_worker_that_has_succeeded_holds_nothing_any_more() -> None:
    worker = seen(kubelet.ended(after(5), 0))
    assert (worker.state, worker.exit_code, worker.finished_at, worker.active) == (
        WorkerState.SUCCEEDED,
        0,
        after(5),
        False,
    )


def test_a_failed_worker_has_exit_code_reason_and_termination_message() -> None:
    worker = seen(kubelet.ended(after(5), 137, reason="OOMKilled", message=" words \n"))
    assert (worker.state, worker.exit_code, worker.reason, worker.termination_message) == (
        WorkerState.FAILED,
        137,
        "OOMKilled",
        "words",
    )
    assert worker.trainer_message is None


def test_the_termination_message_of_the_trainer_is_decoded() -> None:
    worker = seen(kubelet.ended(NOW, 1, message=termination_message(rank=3, exception="E", peer_lost=True)))
    assert worker.trainer_message is not None
    assert (worker.trainer_message.rank, worker.trainer_message.peer_lost) == (3, True)


def test_the_worker_decides_and_not_a_sidecar_that_outlives_it() -> None:
    status = kubelet.ended(NOW, 0)
    sidecar = {"name": "logger", "state": {"running": {}}}
    status = {**status, "phase": "Running", "containerStatuses": [sidecar, *status["containerStatuses"]]}
    assert seen(status).state is WorkerState.SUCCEEDED


def test_a_sidecar_that_ends_does_not_end_the_worker() -> None:
    status = kubelet.running(NOW)
    sidecar = {"name": "logger", "state": {"terminated": {"exitCode": 1}}}
    assert seen({**status, "containerStatuses": [sidecar, *status["containerStatuses"]]}).state is WorkerState.RUNNING


def test_an_evicted_pod_has_failed_and_is_disrupted() -> None:
    worker = seen(kubelet.evicted())
    assert (worker.state, worker.disrupted, worker.reason, worker.exit_code) == (
        WorkerState.FAILED,
        True,
        "Evicted",
        None,
    )
    assert worker.termination_message == "The node was low on resource: memory."


@pytest.mark.parametrize("status", [kubelet.running(NOW), kubelet.ended(NOW, 143)], ids=["running", "ended"])
def test_a_disruption_target_is_disrupted(status: kubelet.Status) -> None:
    worker = seen(kubelet.disrupted(status))
    assert (worker.disrupted, worker.reason, worker.termination_message) == (True, "PreemptionByScheduler", "preempted")
    assert not seen(status).disrupted


def test_a_pod_that_has_done_its_work_is_not_lost_any_more() -> None:
    worker = seen(kubelet.disrupted(kubelet.ended(NOW, 0, message="done")))
    assert (worker.state, worker.disrupted, worker.termination_message) == (WorkerState.SUCCEEDED, False, "done")


@pytest.mark.parametrize(
    "reason",
    ["NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeAffinity", "UnexpectedAdmissionError"],
)
def test_a_pod_that_its_node_rejects_is_disrupted(reason: str) -> None:
    assert seen({"phase": "Failed", "reason": reason, "message": "m"}).disrupted


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "OOMKilled", ""])
def test_other_failures_of_a_pod_are(reason: str) -> None:
    worker = seen({"phase": "Failed", "reason": reason})
    assert (worker.state, worker.disrupted) == (WorkerState.FAILED, False)


def test_a_pod_that_is_being_deleted_says_so() -> None:
    worker = seen(kubelet.running(NOW), terminating=True)
    assert (worker.terminating, worker.deletion_deadline) == (True, after(30))
    assert not seen(kubelet.running(NOW)).terminating


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            kubelet.waiting("ImagePullBackOff", 'Back-off pulling image "x"'),
            Reason.IMAGE_PULL_FAILED,
            'pod job-1-0: cannot pull image example.com/train:1: Back-off pulling image "x"; '
            "check spec.image, spec.imagePullSecrets and the registry",
        ),
        (
            kubelet.waiting("InvalidImageName"),
            Reason.IMAGE_PULL_FAILED,
            "pod job-1-0: cannot pull image example.com/train:1: InvalidImageName; "
            "check spec.image, spec.imagePullSecrets and the registry",
        ),
        (
            kubelet.waiting("CreateContainerConfigError", 'secret "s"\n  not found'),
            Reason.CONTAINER_CONFIG,
            'pod job-1-0: container cannot be created: secret "s" not found; '
            "check spec.env, spec.command and spec.workers.template",
        ),
        (
            kubelet.unschedulable("0/1 nodes are available: 1 Insufficient cpu."),
            Reason.UNSCHEDULABLE,
            "pod job-1-0: cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu. "
            "check spec.workers.resources and spec.workers.template, or add nodes",
        ),
    ],
)
def test_a_blocker_names_the_pod_and_the_fix(status: kubelet.Status, reason: Reason, message: str) -> None:
    worker = seen(status)
    assert worker.state is WorkerState.PENDING
    assert worker.blocker is not None
    assert (worker.blocker.reason, worker.blocker.message) == (reason, message)


def test_a_pod_with_a_scheduling_gate_is_not_unschedulable() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    blocker = seen({"phase": "Pending", "conditions": [condition]}, node=None).blocker
    assert blocker is not None
    assert blocker.reason is Reason.QUEUED
    assert blocker.message == "pod job-1-0: its scheduling gates have not been removed yet"


def test_lists_that_are_null_do_no_harm() -> None:
    worker = seen({"phase": "Pending", "conditions": None, "containerStatuses": None})
    assert worker.state is WorkerState.PENDING


def test_a_pod_without_labels_is_an_error_of_the_caller() -> None:
    pod = make_pod(make_job())
    del pod["metadata"]["labels"][constants.LABEL_INDEX]
    with pytest.raises(KeyError):
        observe_pod(pod)


# --- scheduling gates and schedulers --------------------------------------------------------------------------

GATED = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gated"}],
}


def queued(**labels: str) -> WorkerPod:
    """A pod in a queue of Kueue."""
    pod = make_pod(make_job(scheduling={"queue": "research"}), status=GATED, node=None)
    pod["metadata"]["labels"] |= labels
    return observe_pod(pod)


def test_a_pod_in_a_queue_waits_for_its_admission() -> None:
    worker = queued(**{"kueue.x-k8s.io/managed": "true"})
    assert (worker.gated, worker.unscheduled, worker.unseen_since) == (True, True, None)
    assert worker.blocker is not None
    assert worker.blocker.reason is Reason.QUEUED
    assert worker.blocker.message == (
        "pod job-1-0: waits in the queue research (spec.scheduling.queue) until Kueue admits its group; see: kubectl "
        "describe workload job-1"
    )


def test_a_pod_that_kueue_does_not_manage_waits_for_kueue_and_says_what_to_do() -> None:
    worker = queued()
    assert worker.gated
    assert worker.blocker is not None
    assert worker.blocker.reason is Reason.QUEUE_UNAVAILABLE
    assert "install Kueue with its integration pod" in worker.blocker.message
    assert worker.blocker.permanent == "", "it may be installed at any time"


def test_a_gate_of_another_controller_is_named() -> None:
    template = {"template": {"spec": {"schedulingGates": [{"name": "example.com/mine"}]}}}
    for job in (make_job(workers=template), make_job(workers=template, scheduling={"queue": "q"})):
        pod = make_pod(job, status=GATED, node=None)
        # Kueue has admitted the group.
        pod["spec"]["schedulingGates"] = [{"name": "example.com/mine"}]
        worker = observe_pod(pod)
        assert worker.blocker is not None
        assert worker.blocker.reason is Reason.QUEUED
        assert worker.blocker.message == (
            "pod job-1-0: its scheduling gates (example.com/mine) have not been removed yet"
        )


def test_a_pod_that_a_queue_evicts_is_disrupted_with_the_words_of_the_queue() -> None:
    target = {
        "type": "TerminationTarget",
        "status": "True",
        "reason": "WorkloadEvictedDueToPreempted",
        "message": "Preempted to accommodate a workload due to prioritization in the ClusterQueue",
    }
    status = kubelet.ended(NOW, 143)
    worker = seen({**status, "conditions": [*status["conditions"], target]}, terminating=True)
    assert (worker.disrupted, worker.reason) == (True, "WorkloadEvictedDueToPreempted")
    assert worker.termination_message.startswith("Preempted to accommodate a workload")


def test_a_pod_that_no_scheduler_has_reported_about_says_since_when_it_exists() -> None:
    pod = make_pod(make_job(), status={"phase": "Pending"}, node=None)
    pod["metadata"]["creationTimestamp"] = kubelet.zulu(NOW)
    assert observe_pod(pod).unseen_since == NOW
    for status in (kubelet.unschedulable(), GATED, kubelet.scheduled(), kubelet.running(NOW)):
        assert observe_pod({**pod, "status": status}).unseen_since is None


def test_what_a_scheduler_does_not_understand_is_reported_in_its_words() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulerError",
        "message": "all pods in a single pod group should have the same priority as the pod group's priority",
    }
    worker = seen({"phase": "Pending", "conditions": [condition]}, node=None)
    assert worker.blocker is not None
    assert worker.blocker.reason is Reason.UNSCHEDULABLE
    assert "should have the same priority" in worker.blocker.message
