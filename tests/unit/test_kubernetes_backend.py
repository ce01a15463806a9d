"""The cluster's backend: what each answer of the API server means. (Against a real one: tests/integration.)"""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders import NOW, make_job, make_pod, make_progress, make_worker, trainer_spec
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import Condition, Failure, Reason, TrainingJobStatus
from trainyard_operator.controller.backend import BackendError, Gone, Refused, Stale, Unavailable
from trainyard_operator.kube.api import ApiError
from trainyard_operator.kube.backend import KubernetesBackend
from trainyard_operator.kube.merge_patch import merge_patch
from trainyard_operator.lifecycle.observation import observe_pod
from trainyard_operator.lifecycle.status_builder import Event
from trainyard_operator.manifests.children import build_claim, build_config_map, build_secret, build_service
from trainyard_operator.manifests.gangs import build_group
from trainyard_operator.manifests.revision import build_revision, make_revision

JOB = make_job(trainer=trainer_spec())
SERVICE = build_service(JOB)
Answer = dict[str, Any] | ApiError


class Api:
    """Answers requests from a list, in order, and keeps them."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, Any]] = []
        self.options: list[dict[str, Any]] = []

    async def request(self, verb: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        self.requests.append((verb, path, body))
        self.options.append(options)
        answer = self.answers.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def list(self, path: str, selector: str = "") -> tuple[list[dict[str, Any]], int]:
        answer = await self.request("GET", f"{path}?{selector}")
        return answer["items"], 1


def make_backend(*answers: Answer) -> tuple[KubernetesBackend, Api]:
    api = Api(*answers)
    return KubernetesBackend(api, b"key"), api  # type: ignore[arg-type]


async def create(backend: KubernetesBackend, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    created: list[dict[str, Any]] = []
    await backend.create(JOB, [manifest], on_created=created.append)
    return created


def error(code: int, message: str = "no", **details: Any) -> ApiError:
    return ApiError(code, "Reason", message, details=details)


NO_NAMESPACE = error(404, 'namespaces "default" not found', name="default", kind="namespaces")
TERMINATING = error(403, "being terminated", causes=[{"reason": "NamespaceTerminating", "field": "metadata.namespace"}])


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (409, Stale),
        (404, Gone),
        (0, Unavailable),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (400, Refused),
        (403, Refused),
        (410, Refused),
        (413, Refused),
        (422, Refused),
    ],
)
async def test_each_response_to_a_status_write_has_its_error(code: int, meaning: type[BackendError]) -> None:
    # A status that is refused is followed by a minimal one, and if that is refused as well by an event.
    backend, api = make_backend(error(code), error(code), {})
    with pytest.raises(meaning):
        await backend.write_status(JOB, TrainingJobStatus())
    verbs = [verb for verb, _, _ in api.requests]
    assert verbs == (["PATCH", "PATCH", "POST"] if meaning is Refused else ["PATCH"])


@pytest.mark.parametrize("code", [400, 403, 410, 413, 422])
async def test_a_status_that_is_refused_is_replaced_by_a_minimal_one(code: int) -> None:
    stored = make_job(version=2, status={"attempt": 2})
    backend, api = make_backend(error(code, "status.progress: no\x1b[1m"), stored.to_dict())
    failure = Failure(attempt=1, reason="Error", message="x" * 4096, exit_code=3, at=NOW)
    complete = TrainingJobStatus(
        attempt=2,
        restarts=1,
        progress=make_progress(),
        last_failure=failure,
        conditions=(
            Condition(type="Running", status="True", reason="r", message="m" * 30_000, last_transition_time=NOW),
        ),
    )
    await backend.write_status(JOB, complete)
    patch = api.requests[1][2]["status"]
    assert (patch["attempt"], patch["restarts"]) == (2, 1), "decisions are kept"
    assert "progress" not in patch
    assert patch["lastFailure"] == {"attempt": 1, "reason": "Error", "message": "", "at": "2030-01-01T12:00:00Z"}
    running, refused = patch["conditions"]
    assert len(running["message"]) == 256
    assert (refused["type"], refused["status"], refused["reason"]) == ("StatusRefused", "True", "StatusRefused")
    assert refused["message"].endswith("not up to date: status.progress: no[1m")


async def test_fields_of_another_version_stay_in_the_status() -> None:
    """The patch names nothing but what this version has changed."""
    body = make_job(status={"attempt": 1, "phase": "Pending"}).to_dict()
    body["status"]["fromTheFuture"] = {"a": 1}
    job = TrainingJob.from_dict(body)
    backend, api = make_backend(body)
    await backend.write_status(job, job.status.replace(attempt=2, phase=None))
    assert api.requests[0][2]["status"] == {"attempt": 2, "phase": None}


MALFORMED = (
    error(400, 'strict decoding error: unknown field "spec.nodeselector"'),
    error(400, 'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string'),
    ApiError(422, "Invalid", 'Pod "job-1-0" is invalid: spec.containers[0].name: Required value'),
)
UNDECIDED: tuple[Answer, ...] = (
    error(400, 'admission webhook "x" does not support dry run'),
    ApiError(
        422, "Invalid", 'pods "a" is forbidden: ValidatingAdmissionPolicy "p" with binding "b" denied request: no'
    ),
    error(403, "exceeded quota: q"),
    error(403, 'pods "a" is forbidden: violates PodSecurity "restricted:latest"'),
    error(409, "exists"),
    error(500, 'failed calling webhook "x"'),
    {},
)


@pytest.mark.parametrize("answer", MALFORMED, ids=str)
async def test_a_dry_run_shows_that_a_pod_is_malformed(answer: ApiError) -> None:
    backend, _ = make_backend(answer)
    assert await backend.dry_run(JOB, make_pod(JOB)) == str(answer)


@pytest.mark.parametrize("answer", UNDECIDED, ids=str)
async def test_a_refusal_that_an_administrator_can_lift_does_not_make_a_pod_malformed(answer: Answer) -> None:
    backend, _ = make_backend(answer)
    assert await backend.dry_run(JOB, make_pod(JOB)) is None


@pytest.mark.parametrize(
    ("job", "memory", "fits"),
    [
        (JOB, "300Mi", False),
        (JOB, "64Gi", True),
        (make_job(), "300Mi", True),
        (make_job(trainer=trainer_spec(), workers={"resources": {"limits": {"memory": "64Gi"}}}), "300Mi", True),
    ],
    ids=["too little", "enough", "a program of one's own", "a limit of the job"],
)
async def test_a_dry_run_shows_a_memory_limit_that_the_namespace_adds(
    job: TrainingJob, memory: str, fits: bool
) -> None:
    sent = make_pod(job)
    admitted = copy.deepcopy(sent)
    admitted["spec"]["containers"][0]["resources"] = {"limits": {"memory": memory}}
    backend, _ = make_backend(admitted)
    problem = await backend.dry_run(job, sent)
    assert (problem is None) is fits
    if problem is not None:
        assert problem.startswith(
            "a LimitRange of namespace default limits a worker to 300Mi of memory, since the job sets no limit: "
            "spec.workers.resources.limits.memory: a worker has 300Mi but needs about "
        )


@pytest.mark.parametrize("code", [0, 429, 503])
async def test_a_dry_run_without_an_answer_is_repeated(code: int) -> None:
    backend, _ = make_backend(error(code))
    with pytest.raises(Unavailable):
        await backend.dry_run(JOB, make_pod(JOB))


async def test_a_snapshot_of_another_owner_does_not_count() -> None:
    mine = build_revision(JOB, make_revision(JOB, "image"))
    foreign = build_revision(make_job(uid="uid-0", trainer=trainer_spec()), make_revision(JOB, "image"))
    backend, api = make_backend(mine, foreign, error(404))
    found = [await backend.load_revision(JOB, mine["metadata"]["name"]) for _ in range(3)]
    assert found == [mine, None, None]
    assert api.requests[0][1].startswith("/apis/apps/v1/namespaces/default/controllerrevisions/job-")


async def test_a_status_is_written_for_one_version_of_one_job_only() -> None:
    backend, api = make_backend(make_job(version=2, status={"attempt": 1}).to_dict())
    job = await backend.write_status(JOB, TrainingJobStatus(attempt=1))
    assert (job.metadata.resource_version, job.status.attempt) == ("2", 1)
    ((verb, path, body),) = api.requests
    assert (verb, path) == ("PATCH", "/apis/trainyard.dev/v1alpha1/namespaces/default/trainingjobs/job/status")
    assert body["metadata"] == {"uid": "uid-1", "resourceVersion": "1"}
    assert body["status"] == {"attempt": 1}


@pytest.mark.parametrize(
    ("answer", "meaning", "text"),
    [
        (NO_NAMESPACE, Gone, "the namespace of Service job does not exist any more"),
        (TERMINATING, Gone, "being terminated"),
        (
            error(404, "a webhook finds nothing"),
            Refused,
            "the API server refuses Service job: a webhook finds nothing;",
        ),
        (
            error(403, "a webhook says: x is being terminated"),
            Refused,
            "a webhook says: x is being terminated; correct",
        ),
        (error(403, "exceeded quota: q"), Refused, "the API server refuses Service job: exceeded quota: q; correct "),
        (error(422, "invalid"), Refused, "the API server refuses Service job: invalid; correct "),
        (error(0, "down"), Unavailable, "down"),
        (error(429, "slow down"), Unavailable, "slow down"),
    ],
)
async def test_each_response_to_a_creation_has_its_error(
    answer: ApiError, meaning: type[BackendError], text: str
) -> None:
    backend, _ = make_backend(answer)
    with pytest.raises(meaning, match=text):
        await backend.create(JOB, [SERVICE])


async def test_a_child_that_exists_and_is_the_jobs_own_is_fine() -> None:
    backend, api = make_backend(error(409), SERVICE)
    assert await create(backend, SERVICE) == [SERVICE]
    assert [verb for verb, _, _ in api.requests] == ["POST", "GET"]


async def test_an_existing_secret_is_not_read_since_the_operator_may_not() -> None:
    secret = build_secret(JOB, "token")
    assert secret is not None
    backend, api = make_backend(error(409))
    assert await create(backend, secret) == [secret]
    assert len(api.requests) == 1


async def test_a_configuration_of_an_earlier_spec_is_brought_up_to_date() -> None:
    config = build_config_map(JOB)
    assert config is not None
    backend, api = make_backend(error(409), {**config, "data": {"config.json": "old"}}, config)
    assert await create(backend, config) == [config]
    verb, path, body = api.requests[-1]
    assert (verb, path) == ("PATCH", "/api/v1/namespaces/default/configmaps/job")
    assert body == {"data": config["data"]}


async def test_a_name_of_another_owner_is_refused_with_the_fix() -> None:
    foreign = {"metadata": {"name": "job", "namespace": "default"}}
    backend, _ = make_backend(error(409), foreign)
    with pytest.raises(Refused) as refused:
        await backend.create(JOB, [SERVICE])
    assert refused.value.reason == Reason.NAME_TAKEN
    assert str(refused.value) == (
        "Service job exists already and is not this job's; delete it, or give the job another name"
    )


async def test_a_child_of_a_deleted_namesake_is_waited_for() -> None:
    going = build_service(make_job(uid="uid-0"))
    going["metadata"]["deletionTimestamp"] = "2030-01-01T12:00:00Z"
    backend, _ = make_backend(error(409), going)
    with pytest.raises(Unavailable):
        await backend.create(JOB, [SERVICE])


@pytest.mark.parametrize(("code", "meaning"), [(404, Stale), (503, Unavailable)])
async def test_an_existing_object_that_cannot_be_read_is_retried(code: int, meaning: type[BackendError]) -> None:
    backend, _ = make_backend(error(409), error(code))
    with pytest.raises(meaning):
        await backend.create(JOB, [SERVICE])


def claiming(retain: bool = False) -> TrainingJob:
    return make_job(trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi", "retain": retain}})


@pytest.mark.parametrize(("retain", "welcome"), [(True, True), (False, False)])
async def test_a_claim_that_an_earlier_job_left_is_taken_over_if_it_was_to_be_retained(
    retain: bool, welcome: bool
) -> None:
    left, wanted = build_claim(claiming(retain=True)), build_claim(claiming(retain))
    assert left is not None
    assert wanted is not None
    backend, _ = make_backend(error(409), left)
    if welcome:
        assert await create(backend, wanted) == [left]
    else:
        with pytest.raises(Refused, match="exists already and is not this job's"):
            await backend.create(JOB, [wanted])


async def test_after_a_refused_pod_no_other_is_sent() -> None:
    pods = [make_pod(JOB, index) for index in range(100)]
    backend, api = make_backend(*pods[:3], error(403), *pods[4:])
    with pytest.raises(Refused):
        await backend.create(JOB, pods)
    assert len(api.requests) <= 7, "1, 2 and at most 4 in flight"


async def test_objects_other_than_pods_are_created_although_one_is_refused() -> None:
    config = build_config_map(JOB)
    assert config is not None
    backend, api = make_backend(error(403), config)
    with pytest.raises(Refused):
        await backend.create(JOB, [SERVICE, config])
    assert len(api.requests) == 2


async def test_a_child_with_an_unknown_field_is_not_created_without_it() -> None:
    """The API server drops unknown fields unless it is asked to be strict."""
    backend, api = make_backend(SERVICE)
    await backend.create(JOB, [SERVICE])
    assert api.options == [{"query": {"fieldValidation": "Strict"}, "flow": "default/job"}]


async def test_the_time_after_which_a_server_wants_to_be_asked_again_is_kept() -> None:
    backend, _ = make_backend(ApiError(429, "TooManyRequests", "slow down", retry_after=7))
    with pytest.raises(Unavailable) as failure:
        await backend.create(JOB, [SERVICE])
    assert failure.value.retry_after == 7


async def test_only_the_jobs_own_pods_are_listed() -> None:
    mine, foreign = make_pod(JOB), make_pod(make_job(uid="uid-0"), 1)
    unlabelled = make_pod(JOB, 2)
    unlabelled["metadata"]["labels"] = {"trainyard.dev/job-name": "job"}
    backend, api = make_backend({"items": [mine, foreign, unlabelled]})
    assert await backend.list_pods(JOB) == [mine]
    assert api.requests[0][1] == "/api/v1/namespaces/default/pods?trainyard.dev/job-name=job"


async def test_pods_of_one_attempt_need_not_be_listed() -> None:
    backend, api = make_backend({"items": []})
    assert await backend.list_pods(JOB, other_than=7) == []
    selector = "trainyard.dev/job-name=job,trainyard.dev/attempt!=7"
    assert api.requests[0][1] == f"/api/v1/namespaces/default/pods?{selector}"


GROUPS = "/apis/scheduling.x-k8s.io/v1alpha1/namespaces/default/podgroups"


async def test_groups_are_objects_of_the_api_group_of_their_scheduler() -> None:
    backend, api = make_backend({}, {}, error(404, "404 page not found"))
    group = build_group(make_job(scheduling={"gang": "coscheduling"}), 1)
    assert group is not None
    await backend.create(JOB, [group])
    await backend.delete_groups(JOB, "scheduling.x-k8s.io/v1alpha1", other_than=3)
    await backend.delete_groups(JOB, "scheduling.x-k8s.io/v1alpha1")  # the kind is not served: there is none
    assert [verb for verb, _, _ in api.requests] == ["POST", "DELETE", "DELETE"]
    assert {path for _, path, _ in api.requests} == {GROUPS}
    selectors = [options["query"].get("labelSelector") for options in api.options]
    mine = "trainyard.dev/job-name=job"
    assert selectors == [None, f"{mine},trainyard.dev/attempt!=3", mine], "never those of other jobs"


@pytest.mark.parametrize("code", [403, 404, 422])
async def test_a_group_that_is_refused_is_no_refused_pod(code: int) -> None:
    backend, _ = make_backend(error(code, "the server could not find the requested resource"))
    group = build_group(make_job(scheduling={"gang": "native"}), 1)
    assert group is not None
    with pytest.raises(Refused, match="PodGroup job-1: the server could not find") as refusal:
        await backend.create(JOB, [group])
    assert refusal.value.reason is Reason.GANG_UNAVAILABLE


SERVED = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}


async def test_a_queue_is_read_in_any_version_of_kueue() -> None:
    backend, api = make_backend(SERVED, {"kind": "LocalQueue"})
    assert await backend.find_queue_problem(JOB, "research") is None
    paths = [path for _, path, _ in api.requests]
    queues = "/apis/kueue.x-k8s.io/v1beta2/namespaces/default/localqueues"
    assert paths == ["/apis/kueue.x-k8s.io", f"{queues}/research"]


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([error(404)], "the cluster does not serve kueue.x-k8s.io; install Kueue with its integration pod, or suspend"),
        ([SERVED, error(404)], "the namespace default has no LocalQueue research; create it, or suspend the job"),
        ([SERVED, error(403, "is forbidden")], "is forbidden; give the operator the right to read (get) localqueues"),
    ],
)
async def test_a_queue_that_cannot_be_used_is_said_with_the_fix(answers: list[Any], problem: str) -> None:
    backend, _ = make_backend(*answers)
    found = await backend.find_queue_problem(JOB, "research")
    assert found is not None
    assert found.startswith(f"spec.scheduling.queue: {problem}")


@pytest.mark.parametrize("answers", [[error(503)], [SERVED, error(429)]])
async def test_a_queue_that_could_not_be_read_is_not_missing(answers: list[Any]) -> None:
    backend, _ = make_backend(*answers)
    with pytest.raises(Unavailable):
        await backend.find_queue_problem(JOB, "research")


async def test_a_pod_is_deleted_under_its_uid() -> None:
    backend, api = make_backend({})
    await backend.delete_pods(JOB, [make_worker(0)])
    ((verb, path, body),) = api.requests
    assert (verb, path) == ("DELETE", "/api/v1/namespaces/default/pods/job-1-0")
    assert body["preconditions"] == {"uid": "pod-1-0"}
    assert "gracePeriodSeconds" not in body, "the pod's own"


async def test_a_pod_is_deleted_by_force_under_its_uid_too() -> None:
    backend, api = make_backend({}, {})
    await backend.delete_pods(JOB, [make_worker(0), make_worker(1)], force=True)
    for index, (_, _, body) in enumerate(api.requests):
        assert (body["gracePeriodSeconds"], body["preconditions"]) == (0, {"uid": f"pod-1-{index}"})


@pytest.mark.parametrize(
    "answers",
    [[error(404)], [error(409), error(404)], [error(409), {"metadata": {"uid": "that of its successor"}}]],
    ids=["gone", "gone meanwhile", "replaced"],
)
async def test_a_pod_that_is_gone_or_another_by_now_needs_no_deletion(answers: list[Answer]) -> None:
    backend, api = make_backend(*answers)
    await backend.delete_pods(JOB, [make_worker(0)])
    assert api.answers == []


async def test_a_deletion_that_met_a_conflict_is_tried_again_while_the_pod_exists() -> None:
    """It was taken for done, and the pod stayed for a minute more."""
    backend, api = make_backend(error(409), {"metadata": {"uid": "pod-1-0"}})
    with pytest.raises(Stale):
        await backend.delete_pods(JOB, [make_worker(0)])
    assert [(verb, path) for verb, path, _ in api.requests] == [
        ("DELETE", "/api/v1/namespaces/default/pods/job-1-0"),
        ("GET", "/api/v1/namespaces/default/pods/job-1-0"),
    ]


async def test_a_deletion_without_an_answer_is_tried_again_later() -> None:
    backend, _ = make_backend(error(503))
    with pytest.raises(Unavailable):
        await backend.delete_pods(JOB, [make_worker(0)])


async def test_a_pod_that_may_not_be_deleted_does_not_keep_the_others() -> None:
    workers = [make_worker(index) for index in range(200)]
    backend, api = make_backend(error(403, "a webhook says no"), *[{}] * 199)
    with pytest.raises(Refused, match="a webhook says no"):
        await backend.delete_pods(JOB, workers)
    assert len(api.requests) == 200


async def test_an_api_server_that_does_not_answer_is_not_asked_for_each_deletion() -> None:
    backend, api = make_backend(*[error(0)] * 200)
    with pytest.raises(Unavailable):
        await backend.delete_pods(JOB, [make_worker(index) for index in range(200)])
    assert len(api.requests) <= 50


async def test_an_event_points_at_the_job() -> None:
    backend, api = make_backend({})
    await backend.record_event(JOB, Event("Warning", "WorkerFailed", "x" * 2000))
    ((verb, path, body),) = api.requests
    assert (verb, path) == ("POST", "/api/v1/namespaces/default/events")
    assert body["involvedObject"]["uid"] == "uid-1"
    assert (body["type"], body["reason"], len(body["message"])) == ("Warning", "WorkerFailed", 1024)
    json.dumps(body)


async def test_an_event_says_in_one_line_what_a_pod_wrote() -> None:
    backend, api = make_backend({})
    await backend.record_event(JOB, Event("Warning", "WorkerFailed", "line 1\n\x1b[31mline 2\udce9"))
    assert api.requests[0][2]["message"] == "line 1 [31mline 2\N{REPLACEMENT CHARACTER}"


async def test_an_event_that_is_not_stored_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    backend, _ = make_backend(error(403))
    await backend.record_event(JOB, Event("Normal", "Accepted", "m"))
    assert "default/job: event Accepted was not stored" in caplog.text


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.7", "http://10.0.0.7:9400/metrics"),
        ("fd00::7", "http://[fd00::7]:9400/metrics"),
        (None, None),
        ("169.254.169.254", None),
        ("fe80::1", None),
        ("a.host", None),
        ("me@10.0.0.7", None),
    ],
)
def test_metrics_are_at_the_pods_address(address: str | None, url: str | None) -> None:
    backend, _ = make_backend()
    job = make_job(metrics={})
    found = backend.metrics_url(job, observe_pod(make_pod(job, status={"podIP": address})))
    assert (found and str(found)) == url


def test_metrics_of_a_program_are_where_its_spec_says() -> None:
    backend, _ = make_backend()
    job = make_job(metrics={"port": 8000, "path": "/stats/prom"})
    worker = observe_pod(make_pod(job, status={"podIP": "10.0.0.7"}))
    assert str(backend.metrics_url(job, worker)) == "http://10.0.0.7:8000/stats/prom"
    assert backend.metrics_url(make_job(), worker) is None, "nothing is said of any"


@pytest.mark.parametrize("annotation", [{"prometheus.io/port": "abc"}, {"prometheus.io/path": "@10.0.0.9:80/x"}])
def test_annotations_of_a_pod_do_not_change_what_is_called(annotation: dict[str, str]) -> None:
    """Anybody who may edit pods may set them: they must neither stop the operator nor choose whom it calls."""
    backend, _ = make_backend()
    job = make_job(metrics={})
    pod = make_pod(job, status={"podIP": "10.0.0.7"})
    pod["metadata"]["annotations"] |= annotation
    assert str(backend.metrics_url(job, observe_pod(pod))) == "http://10.0.0.7:9400/metrics"


def test_every_kind_that_is_built_can_be_created() -> None:
    kinds: list[Callable[[], dict[str, Any] | None]] = [
        lambda: build_service(JOB),
        lambda: build_config_map(JOB),
        lambda: build_claim(claiming()),
        lambda: build_secret(JOB, "token"),
        lambda: make_pod(JOB),
        lambda: build_revision(JOB, make_revision(JOB, "image")),
        lambda: build_group(make_job(scheduling={"gang": "native"}), 1),
    ]
    from trainyard_operator.kube.backend import _PLURALS

    assert {(make() or {})["kind"] for make in kinds} == set(_PLURALS)


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"a": 1, "c": 3}, {"b": None, "c": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [2]}, {"a": [2]}),
        ({}, {"a": 0, "b": {}}, {"a": 0, "b": {}}),
    ],
)
def test_a_merge_patch_names_what_has_changed(
    before: dict[str, Any], after: dict[str, Any], patch: dict[str, Any]
) -> None:
    assert merge_patch(before, after) == patch
