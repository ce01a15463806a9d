"""Steps of the cases that expect something, each within a deadline."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.conformance.model import Identity, Job, Object, Step
from tests.conformance.trial import Trial, lookup
from tests.support.kube import ApiRefusal

Fields = Mapping[Any, Any]
"""Expected values by path, with dots between the parts; a value that can be called judges what is found."""


def matches(body: Any, fields: Fields) -> None:
    """Check fields of an object; a value that is empty may be absent, as the API leaves out empty ones."""
    for path, expected in fields.items():
        found = lookup(body, path)
        right = expected(found) if callable(expected) else found == expected or (not found and not expected)
        assert right, f"{path} is {found!r}, not {expected!r}"


def has(*words: str) -> Callable[[Any], bool]:
    """Return a judge of a text that must have all of these words."""
    return lambda found: all(word in (found or "") for word in words)


def expect(check: Callable[[Trial], Any]) -> Step:
    """`check`, which may be asynchronous, raises no AssertionError in the end."""

    async def step(trial: Trial) -> None:
        await trial.until(lambda: check(trial))

    return step


def stays(check: Callable[[Trial], Any], seconds: float = 1.0) -> Step:
    """`check` raises no AssertionError for some time."""

    async def step(trial: Trial) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            check(trial)
            await asyncio.sleep(0.1)

    return step


def reaches(state: str) -> Step:
    """The job is in a state: Pending, Running, Restarting, Suspending, Suspended, Succeeded or Failed."""

    def check(trial: Trial) -> None:
        found = trial.mapping.state(trial.job)
        assert found == state, f"the job is {found}, not {state}"

    return expect(check)


def pods_are(*identities: Identity) -> Callable[[Trial], None]:
    """Return a check that exactly these worker pods exist."""

    def check(trial: Trial) -> None:
        assert set(trial.pods) == set(identities), f"the pods are {sorted(trial.pods)}"

    return check


def has_pods(*identities: Identity) -> Step:
    """Exactly these worker pods exist: attempt and index of each."""
    return expect(pods_are(*identities))


def pods_are_now(*identities: Identity) -> Step:
    """Exactly these worker pods exist at this moment, in the API server and not only in what was seen of it."""

    async def step(trial: Trial) -> None:
        items = (await trial.api.get(trial.core("pods")))["items"]
        found = {trial.mapping.identity(pod) for pod in items}
        assert found == set(identities), f"the pods are {found}"

    return step


def foreign_job_is_left_alone() -> Step:
    """The operator makes nothing for the job, and writes neither its status nor events, whatever happens to it."""

    async def step(trial: Trial) -> None:
        await trial.patch(trial.mapping.suspend(True))
        await trial.patch(trial.mapping.suspend(False))
        # Its controller writes a status, which the operator neither repairs nor acts upon.
        await trial.api.patch(
            trial.jobs("job", "status"), {"status": {"phase": "Running", "attempt": 7, "conditions": []}}
        )
        version = (await trial.api.get(trial.jobs("job")))["metadata"]["resourceVersion"]
        await asyncio.sleep(1)
        body = await trial.api.get(trial.jobs("job"))
        assert body["metadata"]["resourceVersion"] == version, body["status"]
        for plural in ("pods", "services", "events"):
            items = (await trial.api.get(trial.core(plural)))["items"]
            assert items == [], f"{plural} {[item['metadata']['name'] for item in items]}"

    return step


def runs(attempt: int = 1, workers: int = 2) -> Step:
    """All workers of an attempt run, and no other pods exist."""
    identities = [(attempt, index) for index in range(workers)]

    def check(trial: Trial) -> None:
        pods_are(*identities)(trial)
        assert {pod["status"].get("phase") for pod in trial.pods.values()} <= {"Running", "Succeeded"}
        assert trial.mapping.state(trial.job) == "Running", trial.mapping.state(trial.job)

    return expect(check)


def kept(*indexes: int, attempt: int = 1) -> Callable[[Trial], None]:
    """Return a check that of an attempt only these pods exist whose deletion nobody has requested."""

    def check(trial: Trial) -> None:
        found = {i for i, pod in trial.pods.items() if "deletionTimestamp" not in pod["metadata"]}
        assert found == {(attempt, index) for index in indexes}, f"kept are {sorted(found)}"

    return check


def status(fields: Fields) -> Step:
    """The status has these fields."""
    return expect(lambda trial: matches(trial.job.get("status", {}), fields))


def failure(**fields: Any) -> Step:
    """The first failure has these fields."""
    return status({f"lastFailure.{name}": value for name, value in fields.items()})


def says(kind: str, value: str, reason: str, *words: str) -> Step:
    """A condition has a status, a reason, and a message with some words."""
    return expect(lambda trial: _check_condition(trial.job, kind, value, reason, words))


def has_said(kind: str, value: str, reason: str, *words: str) -> Step:
    """A condition has, or has had for a moment, a status, a reason, and a message with some words."""

    def check(trial: Trial) -> None:
        for job in trial.view.job_history[trial.namespace]:
            try:
                _check_condition(job, kind, value, reason, words)
            except AssertionError:
                continue
            return
        _check_condition(trial.job, kind, value, reason, words)

    return expect(check)


def _check_condition(job: Object, kind: str, value: str, reason: str, words: tuple[str, ...]) -> None:
    conditions = job.get("status", {}).get("conditions", ())
    found: Object = next((c for c in conditions if c["type"] == kind), {})
    assert (found.get("status"), found.get("reason")) == (value, reason), f"{kind}: {found}"
    matches(found, {"message": has(*words)})


def without_condition(kind: str) -> Step:
    """The job has no condition of a type."""
    return expect(lambda trial: matches({"found": condition(trial.job, kind)}, {"found": None}))


def condition(job: Object, kind: str) -> str | None:
    """Return the status of a condition; None if it is absent."""
    conditions = job.get("status", {}).get("conditions", ())
    return next((str(c["status"]) for c in conditions if c["type"] == kind), None)


def tells(*reasons: str) -> Step:
    """The events of the job have exactly these reasons, each as often as it is named, in the order of their first."""

    async def check(trial: Trial) -> None:
        items = (await trial.api.get(trial.core("events")))["items"]
        mine = [event for event in items if event["involvedObject"]["name"] == "job"]
        ordered = sorted(mine, key=lambda event: float(event["metadata"]["name"].partition(".")[2]))
        times = Counter[str]()
        for event in ordered:
            times[event["reason"]] += event["count"]
        told = list(dict.fromkeys(event["reason"] for event in ordered))
        assert (told, times) == (list(dict.fromkeys(reasons)), Counter(reasons)), f"events {times}"

    return expect(check)


def event_says(reason: str, *words: str) -> Step:
    """The job has one event with this reason, whose message has some words."""

    async def check(trial: Trial) -> None:
        items = (await trial.api.get(trial.core("events")))["items"]
        messages = [event["message"] for event in items if event["reason"] == reason]
        assert len(messages) == 1, f"events {messages}"
        matches({"message": messages[0]}, {"message": has(*words)})

    return expect(check)


def pod(index: int, fields: Fields) -> Step:
    """A pod of the newest attempt has these fields."""

    def check(trial: Trial) -> None:
        [body] = trial.newest(index)
        matches(body, fields)

    return expect(check)


def environment(index: int, fields: Fields) -> Step:
    """The program of a worker of the newest attempt has these variables; the value None: it is absent."""

    async def step(trial: Trial) -> None:
        [body] = await trial.until(lambda: trial.newest(index))
        matches(await trial.backend.environment(trial, body), fields)

    return step


def finds(plural: str, name: str, fields: Fields, *, group: str = "api/v1") -> Step:
    """Another object in the namespace exists and has these fields."""

    async def check(trial: Trial) -> None:
        try:
            body = await trial.api.get(trial.core(plural, name, group=group))
        except ApiRefusal as refusal:
            raise AssertionError(refusal.message) from refusal
        matches(body, fields)

    return expect(check)


def belongs_to_the_job(plural: str, name: str, *, group: str = "api/v1") -> Step:
    """The job is the controller of another object, so that it is deleted with the job."""

    async def step(trial: Trial) -> None:
        job = await trial.until(lambda: trial.job)
        owner = {"uid": job["metadata"]["uid"], "kind": job["kind"], "controller": True}
        fields: Fields = {f"metadata.ownerReferences.0.{key}": value for key, value in owner.items()}
        await finds(plural, name, fields, group=group)(trial)

    return step


def lists(plural: str, *names: str, group: str = "api/v1") -> Step:
    """Exactly these objects of a kind exist whose deletion nobody has requested."""

    async def check(trial: Trial) -> None:
        items = (await trial.api.get(trial.core(plural, group=group)))["items"]
        found = {item["metadata"]["name"] for item in items if "deletionTimestamp" not in item["metadata"]}
        assert found == set(names), f"{plural} are {sorted(found)}"

    return expect(check)


def scale_is(fields: Fields, *found: str) -> Step:
    """The scale subresource has these fields, and its selector finds the pods with these names."""

    async def check(trial: Trial) -> None:
        scale: Object = await trial.api.get(trial.jobs("job", "scale"))
        matches(scale, fields)
        pods = await trial.api.get(trial.core("pods"), labelSelector=scale["status"].get("selector", "none"))
        names = sorted(pod["metadata"]["name"] for pod in pods["items"])
        assert names == sorted(found), f"the selector finds {names}"

    return expect(check)


def is_gone() -> Step:
    """The job does not exist any more."""

    def check(trial: Trial) -> None:
        assert "job" not in trial.view.jobs[trial.namespace], "the job exists"

    return expect(check)


def refuses_edit(*words: str, **spec: Any) -> Step:
    """The API server refuses a change of the spec, and says why."""

    async def step(trial: Trial) -> None:
        await refused(trial.patch({"spec": spec}), words)

    return step


def refuses(job: Job, *words: str) -> Step:
    """The API server refuses a job, and says why."""

    async def step(trial: Trial) -> None:
        await refused(trial.create(job), words)

    return step


def is_refused(action: Step, *words: str) -> Step:
    """The API server refuses what a step does, and says why."""
    return lambda trial: refused(action(trial), words)


async def refused(request: Awaitable[Any], words: tuple[str, ...]) -> None:
    """Check that the API server refuses a request as invalid, and says why."""
    try:
        await request
    except ApiRefusal as refusal:
        code, message = refusal.code, refusal.message
    else:
        raise AssertionError(f"it was accepted, and not refused with {words}")
    assert code in (400, 403, 422), f"{code}: {message}"  # by the schema, a webhook, or a rule
    assert all(word in message for word in words), message
