"""Elastic groups: when they shrink and grow, and with how many workers they do."""

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import TRAINER_IMAGE, after, elastic, make_job, make_progress, make_worker, trainer_spec
from tests.support.story import Story, running
from trainyard.admission import admit
from trainyard.manifest import ManifestError
from trainyard.protocol import constants
from trainyard.resolve import largest_size, resolve
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase, Reason
from trainyard_operator.lifecycle.actions import CreatePlaceholders, CreateWorkers, DeleteWorkers, Plan
from trainyard_operator.lifecycle.containers import SchedulingBlocker
from trainyard_operator.lifecycle.observation import CreationError, WorkerPod, observe_pod
from trainyard_operator.manifests.placeholder import build_placeholder
from trainyard_operator.manifests.pod import build_pod

UNSCHEDULABLE = SchedulingBlocker(Reason.UNSCHEDULABLE, "pod x: cannot be scheduled: 0/3 nodes are available")


def pods(story: Story, *short: int, **fields: Any) -> list[WorkerPod]:
    """Return the pods of the current attempt: some are unschedulable, and the others run."""
    attempt, replicas = story.status.attempt, story.job.effective_job.spec.workers.replicas
    return [
        make_worker(i, attempt=attempt, replicas=replicas, state="Pending", blocker=UNSCHEDULABLE)
        if i in short
        else make_worker(i, attempt=attempt, replicas=replicas, **fields)
        for i in range(replicas)
    ]


def placeholder(index: int = 0, *, attempt: int = 2, state: str = "Running") -> WorkerPod:
    worker = make_worker(index, attempt=attempt, state=state, is_placeholder=True)
    return replace(worker, name=f"job-{attempt}-placeholder-{index}", uid=f"placeholder-{attempt}-{index}")


def waiting(*short: int, replicas: int = 4, **spec: Any) -> Story:
    """Return a new group with some unschedulable pods."""
    story = Story(make_job(replicas=replicas, **{**elastic(), **spec}))
    story.settle()
    story.see(*pods(story, *short)).settle()
    return story


def shrunk(*short: int, replicas: int = 4, **spec: Any) -> Story:
    """Return a group that runs its second attempt, with as many workers as could be scheduled."""
    story = waiting(*short, replicas=replicas, **spec)
    story.later(60).step()
    story.see().settle()
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    return story


def size(story: Story) -> int:
    return story.job.effective_job.spec.workers.replicas


# --- shrinking ------------------------------------------------------------------------------------------------


def test_unschedulable_pods_lead_to_a_smaller_attempt_after_a_while() -> None:
    story = waiting(1, 3)
    assert story.settle().wake_after == 60
    assert story.later(59).settle().wake_after == 1
    assert (story.status.attempt, size(story)) == (1, 4)
    decision = story.later(1).step()
    assert (decision.actions, decision.wake_after) == ((), 0), "written down before anything is done"
    status = story.status
    assert (status.attempt, status.restarts, status.restarts_counted, size(story)) == (2, 1, 0, 2)
    assert story.events[-1].type == "Warning"
    assert story.events[-1].message == (
        "2 of 4 pods were unschedulable for 60 s (spec.elastic.resizeAfterSeconds); continuing with 2 of 4 workers; "
        "restarting the group as attempt 2"
    )
    degraded = story.condition("Degraded")
    assert (degraded.status, degraded.reason, degraded.message) == ("True", "Resized", "2 of 4 workers")
    gone = story.settle()
    assert [w.attempt for action in gone.actions if isinstance(action, DeleteWorkers) for w in action.workers] == [
        1
    ] * 4
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1)),)
    story.all("Running").settle()
    assert story.condition("Running").message == "attempt 2: 2 workers run"
    assert (story.status.workers.desired, story.status.workers.running) == (2, 2)
    assert story.condition("Degraded").status == "True"


def test_capacity_that_returns_in_time_changes_nothing() -> None:
    story = waiting(1)
    story.later(50).settle()
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    story.later(600).settle()
    assert (story.status.attempt, size(story), story.status.condition(ConditionType.DEGRADED)) == (1, 4, None)


def test_the_wait_starts_again_once_all_pods_were_scheduled() -> None:
    story = waiting(1)
    story.later(50).see(*pods(story, state="Pending")).settle()
    story.later(50).see(*pods(story, 2)).settle()
    story.later(50).settle()
    assert story.status.attempt == 1
    story.later(10).settle()
    assert (story.status.attempt, size(story)) == (2, 3)


def test_pods_refused_by_a_quota_count_as_unschedulable() -> None:
    story = Story(make_job(replicas=4, **elastic()))
    story.settle()
    story.creation_error = CreationError(Reason.PODS_REFUSED, "exceeded quota")
    story.see(*pods(story)[:3]).settle()
    assert story.later(60).step().status.attempt == 2
    assert size(story) == 3


@pytest.mark.parametrize(
    "refusal",
    [None, CreationError(Reason.NAME_TAKEN, "Service job exists already")],
    ids=["not tried", "another trouble"],
)
def test_pods_that_are_not_created_yet_do_not_shrink_a_group(refusal: CreationError | None) -> None:
    story = Story(make_job(replicas=4, **elastic()))
    story.settle()
    story.creation_error = refusal
    story.see(*pods(story)[:3]).settle()
    story.later(600).settle()
    assert story.status.attempt == 1


def test_a_group_never_shrinks_below_min_replicas() -> None:
    story = waiting(1, 2, 3, **elastic(2))
    assert story.later(60).settle().wake_after is None
    assert (story.status.attempt, size(story)) == (1, 4)
    story.see(*pods(story, 1, 2)).settle()
    assert (story.status.attempt, size(story)) == (2, 2), "as soon as there is capacity for as many"


def test_only_sizes_that_the_batch_allows_are_taken() -> None:
    story = waiting(3, **elastic(batch=8))
    story.later(60).step()
    assert size(story) == 2


def test_a_group_that_may_not_shrink_waits() -> None:
    story = Story(make_job(replicas=4, trainer=trainer_spec()))
    story.settle()
    story.see(*pods(story, 1)).settle()
    assert story.later(3600).settle().wake_after is None
    assert story.status.attempt == 1


def test_a_shrunk_group_shrinks_further_and_waits_as_long_again() -> None:
    story = shrunk(3)
    story.see(*pods(story)[:2]).settle()
    assert (story.status.attempt, size(story)) == (3, 3), "a worker was lost, which costs no size"
    story.see(*pods(story, 2)).settle()
    story.later(59).settle()
    assert story.status.attempt == 3
    story.later(1).settle()
    assert (story.status.attempt, size(story)) == (4, 2)


def test_an_unschedulable_parameter_server_takes_the_place_of_a_worker() -> None:
    spec = elastic() | {"parallelism": {"data": {"mode": "parameterServer"}}}
    story = Story(make_job(replicas=3, **spec))
    story.settle()
    server = make_worker(3, replicas=3, state="Pending", is_parameter_server=True, blocker=UNSCHEDULABLE)
    story.see(*pods(story), server).settle()
    story.later(60).step()
    assert size(story) == 2
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1, 2)),)


# --- growing --------------------------------------------------------------------------------------------------


def test_capacity_is_probed_after_a_while_and_the_group_grows_once_it_is_free() -> None:
    story = shrunk(2, 3)
    assert story.later(59).settle().actions == ()
    sought = story.later(1).settle()
    assert sought.actions == (CreatePlaceholders(2, (0, 1)),)
    workers = pods(story)
    waiting_room = [placeholder(i, state="Pending") for i in (0, 1)]
    assert story.see(*workers, *waiting_room).settle().actions == ()
    assert story.status.workers.running == 2, "a placeholder is no worker"
    story.see(*workers, placeholder(0), waiting_room[1]).settle()
    assert story.status.attempt == 2
    decision = story.see(*workers, placeholder(0), placeholder(1)).step()
    assert (decision.actions, decision.wake_after) == ((), 0)
    assert (story.status.attempt, size(story), story.status.restarts_counted) == (3, 4, 0)
    assert story.condition("Degraded").status == "False"
    assert story.events[-1].type == "Normal"
    assert story.events[-1].message == (
        "there is capacity for 4 of 4 workers; continuing with 4 of 4 workers; restarting the group as attempt 3"
    )


def test_placeholders_keep_their_capacity_until_the_workers_have_ended() -> None:
    story = shrunk(2, 3)
    story.later(60).settle()
    workers, placeholders = pods(story), [placeholder(0), placeholder(1)]
    story.see(*workers, *placeholders).step()
    assert deleted(story.settle()) == ["job-2-0", "job-2-1"]
    story.see(*placeholders)
    assert deleted(story.settle()) == ["job-2-placeholder-0", "job-2-placeholder-1"]
    assert story.see().settle().actions == (CreateWorkers(3, (0, 1, 2, 3)),)


def deleted(step: Plan) -> list[str]:
    return [w.name for action in step.actions if isinstance(action, DeleteWorkers) for w in action.workers]


def test_after_a_while_partial_capacity_is_used() -> None:
    story = shrunk(1, 2, 3)
    story.later(60).settle()
    story.see(*pods(story), placeholder(0), *(placeholder(i, state="Pending") for i in (1, 2))).settle()
    assert story.later(59).settle().actions == ()
    story.later(1).step()
    assert (story.status.attempt, size(story)) == (3, 2)
    assert story.condition("Degraded").message == "2 of 4 workers"
    assert deleted(story.settle()) == ["job-2-0", "job-2-placeholder-1", "job-2-placeholder-2"]


def test_capacity_that_fits_no_size_is_released_and_probed_again_later() -> None:
    story = shrunk(2, 3, **elastic(batch=8))
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0), placeholder(1, state="Pending")).settle()
    given_back = story.later(60).settle()
    assert deleted(given_back) == ["job-2-placeholder-0", "job-2-placeholder-1"], "three workers cannot share the batch"
    story.see(*workers)
    assert story.later(59).settle().actions == ()
    assert story.later(1).settle().actions == (CreatePlaceholders(2, (0, 1)),)


def test_unschedulable_placeholders_stay() -> None:
    story = shrunk(2, 3)
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0, state="Pending"))
    assert story.later(60).settle().actions == (CreatePlaceholders(2, (1,)),), "one had been refused"
    story.see(*workers, *(placeholder(i, state="Pending") for i in (0, 1)))
    assert story.later(60).settle().actions == ()
    story.see(*workers, placeholder(0), placeholder(1)).settle()
    assert (story.status.attempt, size(story)) == (3, 4)


def test_a_failed_placeholder_is_replaced_at_the_next_probe() -> None:
    story = shrunk(3)
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0, state="Failed"))
    assert story.later(59).settle().actions == ()
    assert deleted(story.later(1).settle()) == ["job-2-placeholder-0"]
    assert story.status.attempt == 2


def test_a_terminating_placeholder_does_not_prove_capacity() -> None:
    story = shrunk(3)
    story.later(60).settle()
    terminating = replace(placeholder(0), deletion_deadline=after(150))
    story.see(*pods(story), terminating).settle()
    assert (story.status.attempt, size(story)) == (2, 3)
    story.see(*pods(story), placeholder(0)).settle()
    assert (story.status.attempt, size(story)) == (3, 4)


def test_a_group_that_has_just_been_restarted_probes_only_after_a_complete_period() -> None:
    story = shrunk(3)
    story.later(60).settle()
    crashed = make_worker(0, attempt=2, replicas=3, state="Failed")
    story.see(crashed, *pods(story)[1:]).settle()
    story.later(200).see().settle()
    assert story.all("Running").settle().actions == (), "the period starts again"
    assert (story.phase, story.status.attempt, size(story)) == (Phase.RUNNING, 3, 3)
    assert story.later(59).settle().actions == ()
    assert story.later(1).settle().actions == (CreatePlaceholders(3, (0,)),)


def test_a_group_that_is_ending_does_not_grow() -> None:
    story = shrunk(3)
    story.later(60).settle()
    workers = pods(story)
    done = make_worker(0, attempt=2, replicas=3, state="Succeeded")
    story.see(done, *workers[1:], placeholder(0)).settle()
    assert story.status.attempt == 2
    story.see(*(make_worker(i, attempt=2, replicas=3, state="Succeeded") for i in range(3)), placeholder(0)).settle()
    assert story.phase == Phase.SUCCEEDED
    assert deleted(story.settle()) == ["job-2-placeholder-0"]


@pytest.mark.parametrize("change", [{"suspend": True}, {"replicas": 2}], ids=["suspended", "wanted no more"])
def test_placeholders_are_deleted_when_no_worker_is_missing_any_more(change: dict[str, Any]) -> None:
    story = shrunk(2, 3)
    story.later(60).settle()
    story.see(*pods(story), placeholder(0), placeholder(1)).edit(**change)
    if "replicas" in change:
        assert deleted(story.settle()) == ["job-2-placeholder-0", "job-2-placeholder-1"]
        assert (story.status.attempt, story.condition("Degraded").status) == (2, "False")
        assert story.status.elastic is not None
        assert story.status.elastic.replicas is None
    else:
        assert len(deleted(story.settle())) == 4


# --- other changes --------------------------------------------------------------------------------------------


def test_a_failure_keeps_the_size_in_the_pods_and_in_new_ones() -> None:
    story = shrunk(3)
    workers = pods(story, has_launcher=True)
    story.see(
        *workers[1:], make_worker(0, attempt=2, replicas=3, state="Failed", awaiting_restart=True, has_launcher=True)
    ).step()
    assert (story.status.attempt, story.status.pod_attempt_override, size(story)) == (3, 2, 3)
    assert story.condition("Degraded").status == "True"


def test_a_resumed_job_tries_all_its_workers_again() -> None:
    story = shrunk(2, 3)
    story.edit(suspend=True).settle()
    story.see().edit(suspend=False).settle()
    assert (story.status.attempt, size(story)) == (3, 4)
    assert story.condition("Degraded").status == "False"


def test_more_workers_are_waited_for_while_the_group_runs() -> None:
    story = running(replicas=2, **elastic())
    story.edit(replicas=4).settle()
    assert (story.status.attempt, size(story)) == (1, 2)
    assert story.condition("Degraded").message == "2 of 4 workers"
    assert story.events[-1].message == "4 workers are desired now; continuing with 2 until there is capacity for more"
    assert story.later(60).settle().actions == (CreatePlaceholders(1, (0, 1)),)


def test_fewer_workers_are_taken_at_once() -> None:
    story = running(replicas=4, **elastic())
    story.edit(replicas=2).step()
    assert (story.status.attempt, size(story)) == (2, 2)
    assert story.condition("Restarting").reason == "SpecChanged"


def test_a_group_that_does_not_run_yet_restarts_at_a_new_size() -> None:
    story = waiting(1, replicas=2)
    story.edit(replicas=3).step()
    assert (story.status.attempt, size(story)) == (2, 3)


def test_steps_that_changed_nothing_are_more_urgent_than_the_size() -> None:
    story = shrunk(3)
    story.progress = make_progress(10, attempt=2, skipped_steps=1, last_skipped_step=9)
    story.settle()
    assert story.condition("Degraded").reason == "BadSteps"
    story.progress = make_progress(200, attempt=2, skipped_steps=1, last_skipped_step=9)
    story.settle()
    assert (story.condition("Degraded").reason, story.condition("Degraded").message) == ("Resized", "3 of 4 workers")


# --- sizes ----------------------------------------------------------------------------------------------------


def job(least: int, replicas: int, batch: dict[str, Any], **spec: Any) -> TrainingJob:
    return make_job(replicas=replicas, **{**elastic(least), "trainer": trainer_spec(batch=batch), **spec})


@pytest.mark.parametrize(
    ("found", "most", "of"),
    [
        (4, 9, job(1, 4, {"global": 12})),
        (3, 3, job(1, 4, {"global": 12})),
        (2, 3, job(1, 4, {"global": 8})),
        (None, 3, job(4, 4, {"global": 8})),
        (None, 1, job(2, 4, {"global": 8})),
        (6, 7, job(2, 8, {"global": 24}, parallelism={"tensor": 2})),
        (4, 5, job(2, 8, {"global": 24}, parallelism={"tensor": 2})),
        (2, 3, job(1, 4, {"global": 24, "micro": 3})),
        (6, 11, job(2, 12, {"global": 12}, parallelism={"pipeline": {"stages": 2}})),
        (None, 2, make_job(replicas=2)),
    ],
)
def test_the_largest_size_that_is_possible(found: int | None, most: int, of: TrainingJob) -> None:
    assert largest_size(of, most) == found


def test_a_size_must_have_the_memory() -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": 8}}, "gpuMemory": "50Gi"}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 2048}
    model, batch = {"name": "llama", "preset": "8b"}, {"global": 512, "micro": 1}
    trainer = trainer_spec(model=model, data=data, batch=batch, precision="float32")
    spec = {"trainer": trainer, "workers": limits, "parallelism": {"data": {"mode": "fsdp"}}}
    assert largest_size(make_job(replicas=4, **{**elastic(2), **spec}), 3) == 2
    body = make_job(replicas=4, **{**elastic(1), **spec}).to_dict()
    with pytest.raises(
        ManifestError, match=r"^spec\.elastic\.minReplicas: with 1 workers the job is not possible: spec"
    ):
        admit(body)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_the_global_batch_is_the_same_at_every_size(replicas: int) -> None:
    config = resolve(job(1, 4, {"global": 12}).with_replicas(replicas))
    assert config.mesh.data == config.world_size == replicas
    assert config.micro_batch * config.accumulation * config.mesh.data == 12


# --- placeholders ---------------------------------------------------------------------------------------------


def test_a_placeholder_asks_for_what_a_worker_asks_for_and_does_nothing() -> None:
    of = job(1, 4, {"global": 12}, workers=TEMPLATE)
    worker = build_pod(of, 3, 0, trainer_image=TRAINER_IMAGE)
    body = build_placeholder(of, 3, 1, trainer_image=TRAINER_IMAGE)
    assert body["metadata"]["name"] == "job-3-placeholder-1"
    kept = (
        "nodeSelector",
        "tolerations",
        "volumes",
        "securityContext",
        "restartPolicy",
        "automountServiceAccountToken",
    )
    assert {key: body["spec"].get(key) for key in kept} == {key: worker["spec"].get(key) for key in kept}
    assert [c["resources"] for c in body["spec"]["containers"]] == [
        c["resources"] for c in worker["spec"]["containers"]
    ]
    assert {c["image"] for c in body["spec"]["containers"]} == {TRAINER_IMAGE}
    assert body["metadata"]["labels"]["team"] == "a"
    assert body["metadata"]["labels"][constants.LABEL_ROLE] == "placeholder"
    seen = observe_pod({**body, "metadata": {**body["metadata"], "uid": "1"}})
    assert (seen.is_placeholder, seen.attempt, seen.index, seen.has_launcher) == (True, 3, 1, False)
    for container in body["spec"]["containers"]:
        assert container["command"][:2] == ["python", "-c"]
        assert not {"env", "ports", "volumeMounts", "readinessProbe", "args"} & set(container)


def test_a_placeholder_in_the_network_of_its_node_needs_the_ports_of_a_worker() -> None:
    template = {"template": {"spec": {"hostNetwork": True, "containers": [{"name": "logger", "image": "l"}]}}}
    of = job(1, 4, {"global": 12}, workers=template)
    worker, logger = build_placeholder(of, 3, 1, trainer_image=TRAINER_IMAGE)["spec"]["containers"]
    assert worker["ports"] == [{"containerPort": 9400}, {"containerPort": 29500}], "without names: nothing is served"
    assert "ports" not in logger


TEMPLATE = {
    "resources": {"limits": {"cpu": "2"}},
    "template": {
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "initContainers": [{"name": "fetch", "image": "example.com/fetch"}],
            "containers": [{"name": "logger", "image": "example.com/logger", "resources": {"limits": {"cpu": "1"}}}],
        },
    },
}


def test_goodput_metrics_are_those_of_the_status() -> None:
    """The wait is remembered where a new operator finds it."""
    story = waiting(1)
    assert story.status.elastic is not None
    assert story.status.elastic.unschedulable_since == after(0)
    fresh = Story(story.job, story.workers, story.now)
    fresh.later(60).step()
    assert fresh.status.attempt == 2
