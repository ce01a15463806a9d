"""Elastic groups: when they shrink and grow, and with how many workers they do."""

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import TRAINER_IMAGE, after, elastic, make_job, make_progress, make_worker, trainer_spec
from tests.support.story import Story, running
from trainyard import contract
from trainyard.admission import admit
from trainyard.manifest import ManifestError
from trainyard.resolve import largest_size, resolve
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Phase, Reason
from trainyard_operator.build.placeholder import build_placeholder
from trainyard_operator.build.pod import build_pod
from trainyard_operator.core.actions import CreatePlaceholders, CreateWorkers, DeleteWorkers, Plan
from trainyard_operator.core.observe import Obstacle, Trouble, Worker, observe_worker

NO_ROOM = Obstacle(Reason.UNSCHEDULABLE, "pod x: cannot be scheduled: 0/3 nodes are available")


def pods(story: Story, *short: int, **fields: Any) -> list[Worker]:
    """The pods of the current attempt, of which some find no room, and the others run."""
    attempt, replicas = story.status.attempt, story.job.current.spec.workers.replicas
    return [
        make_worker(i, attempt=attempt, replicas=replicas, state="Pending", obstacle=NO_ROOM)
        if i in short
        else make_worker(i, attempt=attempt, replicas=replicas, **fields)
        for i in range(replicas)
    ]


def placeholder(index: int = 0, *, attempt: int = 2, state: str = "Running") -> Worker:
    worker = make_worker(index, attempt=attempt, state=state, placeholder=True)
    return replace(worker, name=f"job-{attempt}-placeholder-{index}", uid=f"placeholder-{attempt}-{index}")


def waiting(*short: int, replicas: int = 4, **spec: Any) -> Story:
    """A new group, some of whose pods find no room."""
    story = Story(make_job(replicas=replicas, **{**elastic(), **spec}))
    story.settle()
    story.see(*pods(story, *short)).settle()
    return story


def shrunk(*short: int, replicas: int = 4, **spec: Any) -> Story:
    """A group that runs, as its second attempt, with as many workers as there was room for."""
    story = waiting(*short, replicas=replicas, **spec)
    story.later(60).step()
    story.see().settle()
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    return story


def size(story: Story) -> int:
    return story.job.current.spec.workers.replicas


# --- shrinking ------------------------------------------------------------------------------------------------


def test_pods_without_room_are_waited_for_and_then_the_next_attempt_has_fewer() -> None:
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
        "no room for 2 of 4 pods for 60 s (spec.elastic.resizeAfterSeconds); going on with 2 of 4 workers; restarting "
        "the group as attempt 2"
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


def test_room_that_comes_in_time_changes_nothing() -> None:
    story = waiting(1)
    story.later(50).settle()
    story.all("Running").settle()
    assert story.phase == Phase.RUNNING
    story.later(600).settle()
    assert (story.status.attempt, size(story), story.status.condition(ConditionType.DEGRADED)) == (1, 4, None)


def test_the_wait_begins_anew_once_all_have_had_room() -> None:
    story = waiting(1)
    story.later(50).see(*pods(story, state="Pending")).settle()
    story.later(50).see(*pods(story, 2)).settle()
    story.later(50).settle()
    assert story.status.attempt == 1
    story.later(10).settle()
    assert (story.status.attempt, size(story)) == (2, 3)


def test_pods_that_a_quota_refuses_have_no_room() -> None:
    story = Story(make_job(replicas=4, **elastic()))
    story.settle()
    story.trouble = Trouble(Reason.PODS_REFUSED, "exceeded quota")
    story.see(*pods(story)[:3]).settle()
    assert story.later(60).step().status.attempt == 2
    assert size(story) == 3


@pytest.mark.parametrize(
    "refusal", [None, Trouble(Reason.NAME_TAKEN, "Service job exists already")], ids=["not tried", "another trouble"]
)
def test_pods_that_are_merely_not_there_yet_do_not_shrink_a_group(refusal: Trouble | None) -> None:
    story = Story(make_job(replicas=4, **elastic()))
    story.settle()
    story.trouble = refusal
    story.see(*pods(story)[:3]).settle()
    story.later(600).settle()
    assert story.status.attempt == 1


def test_a_group_never_shrinks_below_its_least() -> None:
    story = waiting(1, 2, 3, **elastic(2))
    assert story.later(60).settle().wake_after is None
    assert (story.status.attempt, size(story)) == (1, 4)
    story.see(*pods(story, 1, 2)).settle()
    assert (story.status.attempt, size(story)) == (2, 2), "as soon as there is room for as many"


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


def test_a_parameter_server_without_room_takes_that_of_a_worker() -> None:
    spec = elastic() | {"parallelism": {"data": {"mode": "parameterServer"}}}
    story = Story(make_job(replicas=3, **spec))
    story.settle()
    server = make_worker(3, replicas=3, state="Pending", serves=True, obstacle=NO_ROOM)
    story.see(*pods(story), server).settle()
    story.later(60).step()
    assert size(story) == 2
    assert story.see().settle().actions == (CreateWorkers(2, (0, 1, 2)),)


# --- growing --------------------------------------------------------------------------------------------------


def test_room_is_sought_after_a_while_and_the_group_grows_once_it_is_there() -> None:
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
        "there is room for 4 of 4 workers; going on with 4 of 4 workers; restarting the group as attempt 3"
    )


def test_placeholders_keep_their_room_until_the_workers_have_saved_and_gone() -> None:
    story = shrunk(2, 3)
    story.later(60).settle()
    workers, held = pods(story), [placeholder(0), placeholder(1)]
    story.see(*workers, *held).step()
    assert deleted(story.settle()) == ["job-2-0", "job-2-1"]
    story.see(*held)
    assert deleted(story.settle()) == ["job-2-placeholder-0", "job-2-placeholder-1"]
    assert story.see().settle().actions == (CreateWorkers(3, (0, 1, 2, 3)),)


def deleted(step: Plan) -> list[str]:
    return [w.name for action in step.actions if isinstance(action, DeleteWorkers) for w in action.workers]


def test_after_a_while_what_room_there_is_is_taken() -> None:
    story = shrunk(1, 2, 3)
    story.later(60).settle()
    story.see(*pods(story), placeholder(0), *(placeholder(i, state="Pending") for i in (1, 2))).settle()
    assert story.later(59).settle().actions == ()
    story.later(1).step()
    assert (story.status.attempt, size(story)) == (3, 2)
    assert story.condition("Degraded").message == "2 of 4 workers"
    assert deleted(story.settle()) == ["job-2-0", "job-2-placeholder-1", "job-2-placeholder-2"]


def test_room_that_is_of_no_use_is_given_back_and_sought_again_later() -> None:
    story = shrunk(2, 3, **elastic(batch=8))
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0), placeholder(1, state="Pending")).settle()
    given_back = story.later(60).settle()
    assert deleted(given_back) == ["job-2-placeholder-0", "job-2-placeholder-1"], "three workers cannot share the batch"
    story.see(*workers)
    assert story.later(59).settle().actions == ()
    assert story.later(1).settle().actions == (CreatePlaceholders(2, (0, 1)),)


def test_placeholders_that_find_no_room_stay_and_hold_nothing() -> None:
    story = shrunk(2, 3)
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0, state="Pending"))
    assert story.later(60).settle().actions == (CreatePlaceholders(2, (1,)),), "one had been refused"
    story.see(*workers, *(placeholder(i, state="Pending") for i in (0, 1)))
    assert story.later(60).settle().actions == ()
    story.see(*workers, placeholder(0), placeholder(1)).settle()
    assert (story.status.attempt, size(story)) == (3, 4)


def test_a_placeholder_that_fails_is_replaced_no_sooner_than_any() -> None:
    story = shrunk(3)
    story.later(60).settle()
    workers = pods(story)
    story.see(*workers, placeholder(0, state="Failed"))
    assert story.later(59).settle().actions == ()
    assert deleted(story.later(1).settle()) == ["job-2-placeholder-0"]
    assert story.status.attempt == 2


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
def test_placeholders_go_when_nobody_waits_for_room_any_more(change: dict[str, Any]) -> None:
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
    workers = pods(story, supervised=True)
    story.see(*workers[1:], make_worker(0, attempt=2, replicas=3, state="Failed", held=True, supervised=True)).step()
    assert (story.status.attempt, story.status.pod_attempt, size(story)) == (3, 2, 3)
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
    assert story.events[-1].message == "4 workers are wanted now; going on with 2 until there is room for more"
    assert story.later(60).settle().actions == (CreatePlaceholders(1, (0, 1)),)


def test_fewer_workers_are_taken_at_once() -> None:
    story = running(replicas=4, **elastic())
    story.edit(replicas=2).step()
    assert (story.status.attempt, size(story)) == (2, 2)
    assert story.condition("Restarting").reason == "SpecChanged"


def test_a_group_that_does_not_run_yet_begins_anew_at_a_new_size() -> None:
    story = waiting(1, replicas=2)
    story.edit(replicas=3).step()
    assert (story.status.attempt, size(story)) == (2, 3)


def test_steps_that_changed_nothing_are_more_urgent_than_the_size() -> None:
    story = shrunk(3)
    story.progress = make_progress(10, attempt=2, skipped_steps=1, last_skipped_step=9)
    story.settle()
    assert story.condition("Degraded").reason == "NonFinite"
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
    limits = {"resources": {"limits": {"nvidia.com/gpu": 8}}, "gpuMemory": "58Gi"}
    data = {"source": "text", "builtin": "python-stdlib", "sequenceLength": 2048}
    trainer = trainer_spec(model={"name": "gpt", "preset": "8b"}, data=data, batch={"global": 512, "micro": 1})
    spec = {"trainer": trainer, "workers": limits, "parallelism": {"data": {"mode": "fsdp"}}}
    assert largest_size(make_job(replicas=4, **{**elastic(2), **spec}), 3) == 2
    body = make_job(replicas=4, **{**elastic(1), **spec}).to_dict()
    with pytest.raises(
        ManifestError, match=r"^spec\.elastic\.minReplicas: with 1 workers the job is not possible: spec"
    ):
        admit(body)


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_the_global_batch_is_the_same_at_every_size(replicas: int) -> None:
    config = resolve(job(1, 4, {"global": 12}).sized(replicas))
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
    assert body["metadata"]["labels"][contract.LABEL_ROLE] == "placeholder"
    seen = observe_worker({**body, "metadata": {**body["metadata"], "uid": "1"}})
    assert (seen.placeholder, seen.attempt, seen.index, seen.supervised) == (True, 3, 1, False)
    for container in body["spec"]["containers"]:
        assert container["command"][:2] == ["python", "-c"]
        assert not {"env", "ports", "volumeMounts", "readinessProbe", "args"} & set(container)


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


def test_figures_of_time_are_those_of_the_status() -> None:
    """The wait is remembered where a new operator finds it."""
    story = waiting(1)
    assert story.status.elastic is not None
    assert story.status.elastic.short_since == after(0)
    fresh = Story(story.job, story.workers, story.now)
    fresh.later(60).step()
    assert fresh.status.attempt == 2
