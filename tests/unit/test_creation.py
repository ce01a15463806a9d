"""Creation of pods by the controller and its client, on an API server that answers 500 requests per second.

What one job asks for must not delay another one, and what the API server refuses must not be asked for again and again.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.builders import trainer_spec
from tests.support import clock
from tests.support.fake_api import FakeApiServer, FakeOperator
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import ConditionType
from trainyard_operator.controller import pod_actions
from trainyard_operator.controller.backoff import MAX_BACKOFF
from trainyard_operator.kube.api import IN_FLIGHT, PER_JOB
from trainyard_operator.manifests.pod import build_pod

HONEST = 10
Answer = tuple[int, dict[str, Any], dict[str, str]]
REFUSAL: Answer = (403, {"reason": "Forbidden", "message": "exceeded quota: few"}, {})


def play(scenario: Callable[[FakeOperator], Awaitable[None]], **server: float) -> None:
    """Run a scenario with a working operator on a new API server."""

    async def main() -> None:
        operator = FakeOperator(FakeApiServer(**server))
        async with operator.working():
            await scenario(operator)
        assert operator.outcomes["bug"] == 0

    clock.run(main())


async def seconds_to_first_pod(operator: FakeOperator, *, jobs: int = HONEST, wait: float = 30) -> float:
    """Submit small jobs, and return the longest time from the submission of one of them to its first pod."""
    submitted = {}
    for number in range(jobs):
        name = f"honest-{number}"
        submitted[name] = asyncio.get_running_loop().time()
        operator.submit(name, namespace="honest", replicas=2)
        await asyncio.sleep(0.5)
    await asyncio.sleep(wait)
    first = operator.server.first_pod
    return max(first.get(name, float("inf")) - at for name, at in submitted.items())


@pytest.fixture(scope="module")
def quiet_seconds() -> float:
    """Seconds to the first pod where nothing else happens."""
    measured: list[float] = []

    async def scenario(operator: FakeOperator) -> None:
        measured.append(await seconds_to_first_pod(operator))

    play(scenario)
    assert 0 < measured[0] < 0.1
    return measured[0]


def test_a_large_job_that_a_quota_refuses_delays_no_other(
    quiet_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def build(job: TrainingJob, attempt: int, index: int, **options: Any) -> dict[str, Any]:
        if job.metadata.name == "large":
            built.append(index)
        return build_pod(job, attempt, index, **options)

    monkeypatch.setattr(pod_actions, "build_pod", build)

    async def scenario(operator: FakeOperator) -> None:
        operator.server.pod_quota["team"] = 0
        operator.submit("large", namespace="team", replicas=10_000)
        assert await seconds_to_first_pod(operator) <= 2 * quiet_seconds
        assert operator.server.requests["large"] <= 12, "one pod for each try"
        assert len(built) <= 4 * 12, "what is not sent is not built, which would keep all others waiting"

    play(scenario)


def test_a_large_job_that_a_quota_stops_half_way_delays_no_other(quiet_seconds: float) -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.server.pod_quota["team"] = 700
        operator.submit("large", namespace="team", replicas=10_000)
        await asyncio.sleep(5)
        assert await seconds_to_first_pod(operator) <= 2 * quiet_seconds
        assert operator.server.refused["large"] <= PER_JOB + 12

    play(scenario)


def test_jobs_whose_pods_a_webhook_never_answers_for_delay_no_other(quiet_seconds: float) -> None:
    async def scenario(operator: FakeOperator) -> None:
        for number in range(20):
            operator.server.hanging.add(f"hanging-{number}")
            operator.submit(f"hanging-{number}", namespace="team", replicas=10_000)
        await asyncio.sleep(5)
        assert await seconds_to_first_pod(operator) <= 2 * quiet_seconds
        assert operator.server.most_in_flight < IN_FLIGHT

    play(scenario)


def test_a_webhook_that_hangs_in_the_middle_of_a_large_job_leaves_slots_for_others(quiet_seconds: float) -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.submit("large", namespace="team", replicas=10_000)
        await asyncio.sleep(5)
        operator.server.hanging.add("large")
        await asyncio.sleep(1)
        assert 0 < operator.server.in_flight["large"] <= PER_JOB
        assert await seconds_to_first_pod(operator) <= 2 * quiet_seconds

    play(scenario)


def test_many_large_jobs_that_the_server_accepts_take_turns_with_small_ones() -> None:
    """The server is busy, so each request takes longer; but none waits for a complete group of another job."""

    async def scenario(operator: FakeOperator) -> None:
        for number in range(20):
            operator.submit(f"large-{number}", namespace=f"team-{number}", replicas=2_000)
        await asyncio.sleep(2)
        assert await seconds_to_first_pod(operator, jobs=3, wait=3) < 2
        created = [operator.server.requests[f"large-{number}"] for number in range(20)]
        assert min(created) > 0.7 * max(created), "equal shares"

    play(scenario)


@pytest.mark.parametrize(("latency", "before"), [(0.005, 2.06), (0.02, 2.15), (0.1, 2.67)])
def test_a_group_of_a_thousand_pods_costs_about_ten_round_trips_more_than_without_slow_start(
    latency: float, before: float
) -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.submit("large", replicas=1000)
        await asyncio.sleep(10)
        assert operator.server.requests["large"] == 1000, "each pod is requested once"
        # Ten, and two for the dry run and the snapshot.
        assert operator.server.last_pod["large"] <= before + 12 * latency
        assert operator.server.listed == 0, "the fence reads pods of other attempts only"

    play(scenario, latency=latency)


def test_events_of_a_half_created_group_do_not_repeat_what_was_refused() -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.server.pod_quota["default"] = 1
        key = operator.submit("job", replicas=2)
        for _ in range(6000):
            await asyncio.sleep(0.01)
            operator.queue.add(key)  # as the watch stream does when a pod changes
        assert 10 <= operator.server.refused["job"] <= 12, "0.05 s, 0.1 s, 0.2 s, ..."
        assert operator.outcomes["ok"] > 1000, "all else is reconciled at once"

    play(scenario)


def test_a_changed_spec_is_tried_at_once() -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.server.answers["job"] = lambda: REFUSAL
        namespace, name = operator.submit("job", replicas=2)
        await asyncio.sleep(200)
        asked = operator.server.refused["job"]
        path = f"/apis/trainyard.dev/v1alpha1/namespaces/{namespace}/trainingjobs/{name}"
        stored = operator.server.objects[path]
        changed = {**stored["spec"], "restartPolicy": {"maxRestarts": 7}}
        metadata = {**stored["metadata"], "generation": 2}
        del operator.server.answers["job"]
        operator.server.store(path, {**stored, "spec": changed, "metadata": metadata})
        await asyncio.sleep(0.5)
        assert operator.server.requests["job"] == asked + 2

    play(scenario)


def test_the_time_that_the_server_asks_for_is_waited() -> None:
    async def scenario(operator: FakeOperator) -> None:
        times: list[float] = []

        def answer() -> Answer | None:
            times.append(asyncio.get_running_loop().time())
            return (429, {"reason": "TooManyRequests"}, {"Retry-After": "7"}) if len(times) in (1, 3) else None

        operator.server.answers["job"] = answer
        operator.submit("job", replicas=1)
        await asyncio.sleep(60)
        # The dry run is asked to wait, and then the creation is.
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([7, 0, 7], abs=0.2)
        assert "job" in operator.server.first_pod

    play(scenario)


def test_a_webhook_that_fails_is_reported_from_the_second_time_on() -> None:
    async def scenario(operator: FakeOperator) -> None:
        message = 'Internal error occurred: failed calling webhook "x": connection refused'
        answers: list[Answer] = [(500, {"reason": "InternalError", "message": message}, {})]
        operator.server.answers["once"] = lambda: answers.pop() if answers else None
        operator.server.answers["always"] = lambda: (500, {"reason": "InternalError", "message": message}, {})
        keys = {name: operator.submit(name, replicas=1) for name in ("once", "always")}
        reasons: dict[str, set[str]] = {"once": set(), "always": set()}
        for _ in range(500):
            await asyncio.sleep(0.01)
            for name, key in keys.items():
                entry = operator.cache.get(key)
                if entry and entry.job and (condition := entry.job.status.condition(ConditionType.RUNNING)):
                    reasons[name].add(f"{condition.reason}: {condition.message}")
        assert not any("webhook" in reason for reason in reasons["once"])
        assert f"WaitingForPods: Pod always-1-0 cannot be created: {message}" in reasons["always"]

    play(scenario)


def test_a_time_of_hours_is_not_waited() -> None:
    async def scenario(operator: FakeOperator) -> None:
        answers: list[Answer] = [(429, {}, {"Retry-After": "7200"})]
        operator.server.answers["job"] = lambda: answers.pop() if answers else None
        operator.submit("job", replicas=1)
        await asyncio.sleep(MAX_BACKOFF + 1)
        assert "job" in operator.server.first_pod

    play(scenario)


def test_a_job_with_all_kinds_of_children_waits_for_none_of_them() -> None:
    async def scenario(operator: FakeOperator) -> None:
        operator.submit("job", replicas=2, trainer=trainer_spec(), checkpoint={"claim": {"size": "1Gi"}})
        await asyncio.sleep(1)
        assert operator.server.first_pod["job"] < 0.1
        kinds = {body["kind"] for body in operator.server.objects.values()}
        assert kinds == {
            "TrainingJob",
            "Service",
            "ConfigMap",
            "PersistentVolumeClaim",
            "Secret",
            "ControllerRevision",
            "Pod",
        }

    play(scenario)
