"""Acceptance of specs: what is stored at the start is what runs, and what is not understood is said."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    NOW,
    TRAINER_IMAGE,
    after,
    make_job,
    make_manifest,
    make_pod,
    make_worker,
    served,
    trainer_spec,
)
from tests.support import clock, kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from tests.support.story import Story, running
from trainyard.base import PART_OF_POD
from trainyard.crd import Schema, _structural
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType, Reason, TrainingJobStatus
from trainyard_operator.controller import acceptance as acceptance_module
from trainyard_operator.controller.acceptance import accept, load_accepted
from trainyard_operator.controller.cache import Cache, CachedPod, Key
from trainyard_operator.controller.reconciler import STATUS_REFUSED_WAIT, Reconciler
from trainyard_operator.controller.unreadable import UnreadableJob, read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.actions import AcceptSpec, CreateWorkers
from trainyard_operator.lifecycle.minimal_status import minimal_status
from trainyard_operator.lifecycle.observation import Acceptance, CreationError, Observation
from trainyard_operator.lifecycle.plan import plan
from trainyard_operator.manifests.pod import build_pod
from trainyard_operator.manifests.revision import (
    accepted_spec,
    build_revision,
    changed_fields,
    make_revision,
    read_revision,
)

KEY = ("default", "job")
DRY_RUN = AcceptSpec(dry_run=True)


# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_job_starts_only_after_its_spec_is_accepted() -> None:
    step = plan(Observation(make_job(), (), NOW))
    assert step.actions == (DRY_RUN,)
    assert step.status.attempt == 0
    story = Story()
    story.step()
    assert (story.status.attempt, story.status.accepted_revision) == (1, "job-0123456789abcdef")


def test_a_spec_that_the_api_server_refuses_fails_the_job_without_an_attempt() -> None:
    story = Story(acceptance=Acceptance(problem="spec.workers.template: no"))
    assert story.settle().actions == ()
    assert (story.condition("Failed").reason, story.condition("Failed").message) == (
        "InvalidSpec",
        "spec.workers.template: no",
    )
    assert (story.status.attempt, story.status.accepted_revision) == (0, None)


def test_a_snapshot_that_cannot_be_stored_is_reported_and_tried_again() -> None:
    story = Story(acceptance=Acceptance(refusal=CreationError(Reason.PODS_REFUSED, "quota")))
    step = story.settle()
    assert (story.condition("Running").reason, story.condition("Running").message) == ("RevisionRefused", "quota")
    assert (story.status.attempt, step.actions, step.wake_after) == (0, (), 10)
    story.acceptance = Acceptance(revision="job-1")
    assert story.settle().actions == (CreateWorkers(1, (0, 1)),)


def test_a_resumed_job_is_accepted_again() -> None:
    story = running()
    story.edit(suspend=True).settle()
    story.see().settle()
    story.edit(suspend=False)
    story.acceptance = Acceptance(revision="job-2")
    assert story.settle().actions == (CreateWorkers(2, (0, 1)),)
    assert story.status.accepted_revision == "job-2"


def test_a_job_that_an_earlier_version_has_started_gets_a_snapshot_without_a_dry_run() -> None:
    story = running()
    story.job = story.job.replace(status=story.status.replace(accepted_revision=None))
    step = plan(Observation(story.job, story.workers, NOW))
    assert step.actions == (AcceptSpec(dry_run=False),)
    story.settle()
    assert (story.status.attempt, story.status.accepted_revision) == (1, "job-0123456789abcdef")
    assert story.phase == "Running"


def test_a_job_whose_status_was_lost_finds_its_snapshot_by_its_pods() -> None:
    story = Story().all("Running", attempt=3, revision="job-abc")
    story.step()
    assert (story.status.attempt, story.status.accepted_revision) == (3, "job-abc")


def observe(story: Story, **fields: Any) -> Observation:
    return replace(Observation(story.job, story.workers, story.now), **fields)


def test_a_changed_spec_is_a_condition_with_the_paths_and_the_fix() -> None:
    story = running()
    step = plan(observe(story, changed_fields=("spec.env", "spec.image")))
    condition = step.status.condition(ConditionType.SPEC_CHANGED)
    assert condition is not None
    assert condition.message == (
        "spec.env, spec.image: differs from what was accepted (job-0123456789abcdef), and has no effect on the "
        "running job; to apply it set suspend: true, wait for the condition Suspended and set suspend: false, else "
        "undo the change"
    )
    assert step.actions == ()
    assert [event.reason for event in step.events] == ["SpecChanged"]
    story.job = story.job.replace(status=step.status)
    story.settle()
    assert (story.condition("SpecChanged").status, story.condition("SpecChanged").reason) == ("False", "AsAccepted")


def test_many_changed_fields_make_a_short_message() -> None:
    paths = tuple(f"spec.{'x' * 1000}{number}" for number in range(1000))
    condition = plan(observe(running(), changed_fields=paths)).status.condition(ConditionType.SPEC_CHANGED)
    assert condition is not None
    assert len(condition.message) < 3000
    assert " and 990 more: " in condition.message


def test_without_its_snapshot_a_group_runs_on_but_gets_no_pods() -> None:
    problem = CreationError(Reason.REVISION_MISSING, "gone")
    story = running()
    step = plan(observe(story, revision_problem=problem))
    assert (step.actions, step.status.phase) == ((), "Running")
    story.all("Failed").settle()
    story.see()
    step = plan(observe(story.later(60), revision_problem=problem))
    running_condition = step.status.condition(ConditionType.RUNNING)
    assert running_condition is not None
    assert (running_condition.reason, running_condition.message) == ("RevisionMissing", "gone")
    assert (step.actions, step.wake_after) == ((), 10)


def test_a_change_of_the_size_waits_for_the_snapshot() -> None:
    story = running().edit(replicas=3)
    step = plan(observe(story, revision_problem=CreationError(Reason.REVISION_MISSING, "gone")))
    assert (step.status.attempt, step.actions) == (1, ())


def test_unknown_fields_are_a_condition() -> None:
    body = make_manifest(colour="red")
    story = Story(TrainingJob.from_dict({**body, "metadata": {**body["metadata"], "uid": "u"}}))
    story.settle()
    assert story.condition("UnknownFields").message.startswith(
        "spec.colour: this version of the operator does not know"
    )


def test_a_condition_of_another_version_stays() -> None:
    condition = {"type": "Dreaming", "status": "True", "reason": "r", "lastTransitionTime": "2030-01-01T12:00:00Z"}
    story = Story(make_job(status={"conditions": [condition]}))
    story.settle()
    assert [c.type for c in story.status.conditions] == ["Created", "Running", "Ready", "Reconciling", "Dreaming"]


# --- the snapshot -----------------------------------------------------------------------------------------------


def test_a_snapshot_is_read_as_it_was_stored() -> None:
    job = make_job(trainer=trainer_spec())
    revision = make_revision(job, TRAINER_IMAGE)
    body = build_revision(job, revision)
    assert read_revision(job, body) == revision
    assert body["data"]["image"] == TRAINER_IMAGE
    assert not {"suspend", "restartPolicy"} & body["data"]["spec"].keys()
    assert "replicas" not in body["data"]["spec"]["workers"]


@pytest.mark.parametrize("data", [None, {}, {"spec": {}, "image": "x"}, {"spec": [], "image": 3}])
def test_an_altered_snapshot_is_recognized(data: Any) -> None:
    job = make_job()
    body = {**build_revision(job, make_revision(job, TRAINER_IMAGE)), "data": data}
    with pytest.raises(ValueError, match="does not hold what the operator stored in it"):
        read_revision(job, body)


def test_a_snapshot_of_another_job_of_the_same_name_has_another_name() -> None:
    assert make_revision(make_job(uid="a"), "i").name != make_revision(make_job(uid="b"), "i").name


def test_the_live_values_of_mutable_fields_are_used() -> None:
    revision = make_revision(make_job(replicas=2), "image")
    live = make_job(replicas=5, suspend=True, restartPolicy={"maxRestarts": 9}, env=[{"name": "A", "value": "1"}]).spec
    spec = accepted_spec(revision, live)
    assert (spec.workers.replicas, spec.suspend, spec.restart_policy.max_restarts) == (5, True, 9)
    assert spec.env is None
    assert changed_fields(spec, live) == ("spec.env",)
    assert changed_fields(live, live) == ()


def test_an_unchanged_spec_is_kept_once_in_memory() -> None:
    job = make_job(trainer=trainer_spec())
    assert accepted_spec(make_revision(job, "i"), job.spec) is job.spec


async def test_another_default_image_does_not_reach_a_job_that_was_accepted_before() -> None:
    job = make_job(trainer=trainer_spec())
    cluster = FakeCluster(of=job)
    backend = FakeClusterBackend(cluster)
    acceptance = await accept(backend, job, DRY_RUN, "trainer:1")
    job = job.replace(status=TrainingJobStatus(attempt=1, accepted_revision=acceptance.revision))
    unchanged = await load_accepted(backend, job, None, "trainer:1")
    assert (cluster.dry_runs, cluster.loads) == (1, 0), "the hash shows that nothing has changed"
    upgraded = await load_accepted(backend, job, None, "trainer:2")
    assert await load_accepted(backend, job, upgraded, "trainer:2") is upgraded
    assert cluster.loads == 1
    assert unchanged.spec.image == upgraded.spec.image == "trainer:1"
    assert upgraded.changed == ()


async def test_a_job_that_is_not_active_has_its_live_spec() -> None:
    suspended = {"type": "Suspended", "status": "True", "reason": "r", "lastTransitionTime": "2030-01-01T12:00:00Z"}
    for status in ({}, {"attempt": 1, "acceptedRevision": "job-1", "conditions": [suspended]}):
        job = make_job(status=status)
        accepted = await load_accepted(FakeClusterBackend(FakeCluster(of=job)), job, None, "i")
        assert accepted.spec is job.spec


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (lambda body: None, "RevisionMissing", "does not exist any more"),
        (lambda body: body["data"].update(image="evil"), "RevisionAltered", "was altered"),
    ],
)
async def test_a_snapshot_that_cannot_be_used_is_never_replaced_by_the_live_spec(
    damage: Any, reason: str, words: str
) -> None:
    job = make_job()
    backend = FakeClusterBackend(FakeCluster(of=job))
    revision = (await accept(backend, job, DRY_RUN, "i")).revision
    assert revision is not None
    status = TrainingJobStatus(attempt=1, accepted_revision=revision)
    changed = make_job(env=[{"name": "A", "value": "1"}]).replace(status=status)
    if reason == "RevisionMissing":
        del backend.cluster.revisions[revision]
    else:
        damage(backend.cluster.revisions[revision])
    problem = (await load_accepted(backend, changed, None, "i")).problem
    assert problem is not None
    assert problem.reason == reason
    assert words in problem.message
    assert "set suspend: true" in problem.message


# --- the dry run ------------------------------------------------------------------------------------------------


async def problem_of(**fields: Any) -> str:
    job = make_job(**fields)
    return (await accept(FakeClusterBackend(FakeCluster(of=job)), job, DRY_RUN, TRAINER_IMAGE)).problem


async def test_what_cannot_be_merged_names_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    server = {"template": {"spec": {"containers": [3]}}}
    assert (await problem_of(**served(), parameterServer=server)).startswith("spec.parameterServer.template.spec.cont")

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("unhashable")

    # A shape that no check expects.
    monkeypatch.setattr(acceptance_module, "build_pod", fail)
    assert await problem_of() == "spec.workers.template: is not a part of a pod (TypeError: unhashable); correct it"


async def test_a_pod_of_each_role_is_sent_as_a_dry_run() -> None:
    for fields, count in (({}, 1), (served(), 2)):
        job = make_job(**fields)
        cluster = FakeCluster(of=job)
        await accept(FakeClusterBackend(cluster), job, DRY_RUN, TRAINER_IMAGE)
        assert (cluster.dry_runs, len(cluster.revisions)) == (count, 1)


async def test_the_words_of_the_api_server_are_bounded_and_clean() -> None:
    job = make_job()
    cluster = FakeCluster(of=job)
    cluster.malformed = "no\x1b[1m\n" + "x" * 100_000
    problem = (await accept(FakeClusterBackend(cluster), job, DRY_RUN, TRAINER_IMAGE)).problem
    assert problem.startswith("spec.workers.template, or another field from which the pod is made: no[1m xxx")
    assert len(problem) <= 4096
    assert cluster.revisions == {}, "nothing is accepted"


async def test_a_refused_snapshot_is_a_refusal() -> None:
    job = make_job()
    cluster = FakeCluster(of=job)
    cluster.revisions_refused = "exceeded quota"
    refusal = (await accept(FakeClusterBackend(cluster), job, DRY_RUN, TRAINER_IMAGE)).refusal
    assert refusal is not None
    assert refusal.message == "exceeded quota"


def test_all_that_nothing_else_checks_is_in_the_pod_that_is_sent() -> None:
    """The generator relies on it (`PART_OF_POD`): what a user writes there must reach the dry run as it is."""
    odd = {"oddField": {"a": 1}}
    job = make_job(
        **served(),
        workers={"template": {"spec": odd}},
        env=[{"name": "A", "valueFrom": odd}],
        checkpoint={"volume": odd},
        parameterServer={"template": {"spec": odd}},
    )
    worker, server = (build_pod(job, 1, index, trainer_image="i")["spec"] for index in (0, 2))
    assert worker["oddField"] == server["oddField"] == {"a": 1}
    assert [volume["oddField"] for volume in worker["volumes"] if "oddField" in volume] == [{"a": 1}]
    assert {"name": "A", "valueFrom": odd} in worker["containers"][0]["env"]


@pytest.mark.parametrize(
    "field",
    [
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "const": "auto"}]},
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2}, {"type": "string"}]},
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2}, {"type": "boolean"}]},
        {"x-kubernetes-preserve-unknown-fields": True},
    ],
)
def test_the_generator_refuses_a_field_that_nothing_checks(field: Schema) -> None:
    with pytest.raises(TypeError, match=r"^a\.b: "):
        _structural({"properties": {"a": {"properties": {"b": field}}}}, {})
    if "anyOf" not in field:
        assert PART_OF_POD not in _structural({**field, PART_OF_POD: True}, {})


# --- reading ----------------------------------------------------------------------------------------------------


def body_of(spec: dict[str, Any], *, version: int = 1, **status: Any) -> dict[str, Any]:
    body = make_manifest()
    body["metadata"] |= {"uid": "uid-1", "generation": version, "resourceVersion": str(version), "labels": {"a": "b"}}
    return {**body, "spec": {**body["spec"], **spec}, **({"status": status} if status else {})}


def unreadable(spec: dict[str, Any], **fields: Any) -> UnreadableJob:
    job = read_job(body_of(spec, **fields))
    assert isinstance(job, UnreadableJob)
    return job


def test_the_message_names_every_field_the_rule_and_the_fix() -> None:
    assert unreadable({"imagePullPolicy": "Sometimes", "workers": {"replicas": "many"}}).problem == (
        "spec.imagePullPolicy: must be 'Always', 'IfNotPresent' or 'Never', not 'Sometimes'; spec.workers.replicas: "
        "must be a whole number, not 'many'; correct the field, or install the version of the operator that belongs to "
        "the CRD"
    )


def test_a_long_value_makes_a_short_message() -> None:
    assert len(unreadable({"imagePullPolicy": "x" * 1_000_000, "suspend": ["y" * 1_000_000]}).problem) <= 1024


@pytest.mark.parametrize("depth", [101, 5000])
def test_deep_nesting_is_unreadable(depth: int) -> None:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner] if depth % 2 else {"a": inner}
    problem = unreadable({"workers": {"template": {"spec": {"x": inner}}}}).problem
    assert problem.startswith("spec: must not be nested more than 100 levels deep; ")


def test_the_problem_is_written_once() -> None:
    job = unreadable({"suspend": 7}, phase="Running", conditions=[{"type": "Other", "status": "True"}])
    patch = job.status_patch(NOW)
    assert patch is not None
    assert patch["phase"] == "Running"
    assert [c["type"] for c in patch["conditions"]] == ["Other", "Unreadable"]
    assert unreadable({"suspend": 7}, **patch).status_patch(after(60)) is None
    again = unreadable({"suspend": 8}, **patch).status_patch(after(60))
    assert again is not None
    assert again["conditions"][-1]["lastTransitionTime"] == "2030-01-01T12:00:00Z", "it has been so since then"
    assert "not 8" in again["conditions"][-1]["message"]


def is_readable(cache: Cache) -> bool:
    entry = cache.get(KEY)
    assert entry is not None
    return isinstance(entry.newest, TrainingJob)


def test_an_unreadable_job_keeps_its_place_and_its_pods() -> None:
    cache = Cache()
    cache.put_job(make_job(version=1))
    cache.put_pod(make_pod(make_job(), status=kubelet.scheduled()))
    cache.put_job(unreadable({"suspend": 7}, version=5))
    cache.put_job(make_job(version=4))
    assert not is_readable(cache), "an older version does not replace a newer one"
    pod = CachedPod.read(make_pod(make_job()))
    assert pod is not None
    assert cache.replace([unreadable({"suspend": 7}, version=5)], [pod], 6) == 0
    assert [worker.name for worker in cache.workers(KEY)] == ["job-1-0"]
    cache.put_job(make_job(version=7))
    assert is_readable(cache)
    cache.put_job(unreadable({"suspend": 7}, version=8))
    cache.remove_job(KEY, "uid-1")
    assert cache.get(KEY) is None
    assert len(cache) == 0


# --- the reconcile loop -----------------------------------------------------------------------------------------


class Operator:
    """A reconciler on a fake cluster."""

    def __init__(self, backend: type[FakeClusterBackend] = FakeClusterBackend, **spec: Any) -> None:
        self.cluster = FakeCluster(**spec)
        self.cache: Cache = Cache()
        queue: WorkQueue[Key] = WorkQueue()
        self.reconciler = Reconciler(
            self.cache, queue, backend(self.cluster), TRAINER_IMAGE, clock=lambda: self.cluster.now
        )
        assert self.cluster.job is not None
        self.cache.put_job(self.cluster.job)

    async def reconcile(self) -> float | None:
        return await self.reconciler.reconcile(KEY)


def test_an_unreadable_job_is_reported_and_nothing_is_done_to_its_pods() -> None:
    async def scenario() -> None:
        operator = Operator()
        for _ in range(4):
            await operator.reconcile()
        assert set(operator.cluster.pods) == {"job-1-0", "job-1-1"}
        operator.cache.put_job(unreadable({"suspend": 7}, version=100))
        assert await operator.reconcile() is None
        assert [problem.partition(":")[0] for problem in operator.cluster.unreadable] == ["spec.suspend"]
        assert set(operator.cluster.pods) == {"job-1-0", "job-1-1"}

    clock.run(scenario())


def test_a_job_that_resumes_while_its_pods_end_runs_what_was_accepted_before() -> None:
    story = running()
    revision = story.status.accepted_revision
    story.edit(suspend=True).settle()
    assert story.status.suspending
    story.acceptance = Acceptance(revision="job-another")
    story.edit(suspend=False).settle()
    assert (story.status.attempt, story.status.accepted_revision) == (2, revision)


def test_an_unreadable_job_whose_status_cannot_be_stored_is_reported_by_one_event() -> None:
    async def scenario() -> None:
        operator = Operator()
        operator.cluster.refuses_status = True
        for version in (100, 101, 102):
            operator.cache.put_job(unreadable({"suspend": 7}, version=version))
            await operator.reconcile()
        assert [event.reason for event in operator.cluster.events] == ["Unreadable"]
        operator.cache.put_job(unreadable({"suspend": 8}, version=103))
        await operator.reconcile()
        assert ["not 7" in event.message for event in operator.cluster.events] == [True, False]

    clock.run(scenario())


def test_pods_of_later_attempts_are_built_from_the_snapshot() -> None:
    async def scenario() -> None:
        operator = Operator(replicas=1, trainer=trainer_spec(), restartPolicy={"backoff": {"initialSeconds": 0}})
        cluster = operator.cluster
        for _ in range(4):
            await operator.reconcile()
        operator.reconciler.trainer_image = "trainer:next"
        cluster.edit(env=make_job(env=[{"name": "A", "value": "1"}]).spec.env)
        cluster.set_pod("job-1-0", kubelet.running(cluster.now))
        cluster.fail_pod("job-1-0", 1)
        assert cluster.job is not None
        operator.cache.put_job(cluster.job)
        operator.cache.put_pod(cluster.pods["job-1-0"])
        await operator.reconcile()
        cluster.remove_pod("job-1-0")
        operator.cache.remove_pod(cluster.pod_stream[-1][1])
        for _ in range(3):
            await operator.reconcile()
        container = cluster.pods["job-2-0"]["spec"]["containers"][0]
        assert container["image"] == TRAINER_IMAGE
        assert "A" not in {entry["name"] for entry in container["env"]}
        changed = cluster.job.status.condition(ConditionType.SPEC_CHANGED)
        assert changed is not None
        assert changed.message.startswith("spec.env: ")

    clock.run(scenario())


class RefusingBackend(FakeClusterBackend):
    """Stores a minimal status instead of every status."""

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> TrainingJob:
        return self.cluster._store_job(job.replace(status=minimal_status(job.status, status, "no")))


def test_a_job_whose_status_is_refused_lives_on_without_a_busy_loop() -> None:
    async def scenario() -> None:
        operator = Operator(RefusingBackend)
        waits = [await operator.reconcile() for _ in range(4)]
        assert waits == [STATUS_REFUSED_WAIT] * 4
        assert set(operator.cluster.pods) == {"job-1-0", "job-1-1"}
        assert operator.cluster.job is not None
        refused = operator.cluster.job.status.condition(ConditionType.STATUS_REFUSED)
        assert refused is not None
        assert (refused.status, refused.last_transition_time) == ("True", NOW)

    asyncio.run(scenario())


def test_the_condition_of_a_refused_status_is_cleared_by_the_next_one_that_is_stored() -> None:
    story = running()
    refused = minimal_status(story.status, story.status, "no")
    story.job = story.job.replace(status=refused)
    story.settle()
    assert (story.condition("StatusRefused").status, story.condition("StatusRefused").reason) == (
        "False",
        "StatusStored",
    )


def test_a_finished_job_that_becomes_readable_again_says_so() -> None:
    story = running()
    story.see(make_worker(0, state="Succeeded"), make_worker(1, state="Succeeded")).settle()
    unreadable_now = story.condition("Succeeded").replace(type="Unreadable", reason="Unreadable")
    conditions = (*story.status.conditions, unreadable_now)
    story.job = story.job.replace(status=story.status.replace(conditions=conditions))
    story.settle()
    assert story.condition("Unreadable").status == "False"
