"""The operator's edge: options, health, metrics, complete lists."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from tests.builders import make_job
from tests.support import clock
from trainyard.json_log import JsonFormatter
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.unreadable import read_job
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.api import ApiError
from trainyard_operator.kube.lease import Lease
from trainyard_operator.kube.metrics import OperatorMetrics
from trainyard_operator.kube.probes import STALLED, Health, serve
from trainyard_operator.kube.resync import GRACE, LIST_RETRY, MAX_LAG, Resync
from trainyard_operator.options import parse_options

KEY = ("default", "job")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals = ("PROGRESS_INTERVAL", "RESYNC_INTERVAL")
    for name in ("TRAINER_IMAGE", "WATCH_NAMESPACES", "PORT", *intervals, "KEY_SECRET", "LEASE", "LOG_LEVEL"):
        monkeypatch.delenv(f"TRAINYARD_{name}", raising=False)
    monkeypatch.delenv("POD_ID", raising=False)


# --- options --------------------------------------------------------------------------------------------------


def test_options_have_defaults_for_all_but_the_image() -> None:
    options, level = parse_options(["--trainer-image", "x"])
    assert (options.trainer_image, options.namespaces, options.port, level) == ("x", (), 8080, "info")
    assert (options.progress_interval, options.resync_interval) == (5.0, 300.0)
    assert (options.key_secret, options.lease) == (None, None)


def test_the_environment_sets_what_the_command_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_TRAINER_IMAGE", "from-env")
    monkeypatch.setenv("TRAINYARD_PORT", "9000")
    monkeypatch.setenv("TRAINYARD_WATCH_NAMESPACES", "team, other,team")
    monkeypatch.setenv("TRAINYARD_LOG_LEVEL", "debug")
    options, level = parse_options(["--port", "9001"])
    assert (options.trainer_image, options.namespaces, level) == ("from-env", ("team", "other"), "debug")
    assert options.port == 9001


def test_an_empty_namespace_means_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_WATCH_NAMESPACES", "")
    assert parse_options(["--trainer-image", "x"])[0].namespaces == ()


def test_without_an_image_the_operator_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_options([])
    assert end.value.code == 2
    assert "--trainer-image" in capsys.readouterr().err


def test_help_names_every_option_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_options(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--trainer-image",
        "--namespaces",
        "--port",
        "--progress-interval",
        "--resync-interval",
        "--key-secret",
        "--lease",
        "--log-level",
    ):
        assert option in text


@pytest.mark.parametrize(("option", "field"), [("--key-secret", "key_secret"), ("--lease", "lease")])
def test_options_with_a_namespace_are_parsed(option: str, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, _ = parse_options(["--trainer-image", "x", option, "system/name"])
    assert getattr(options, field) == ("system", "name")
    for wrong in ("name", "/name", "system/"):
        with pytest.raises(SystemExit):
            parse_options(["--trainer-image", "x", option, wrong])
        assert f"{option}: must be NAMESPACE/NAME, not {wrong}" in capsys.readouterr().err


def test_a_candidate_is_named_after_its_pod_or_gets_a_unique_name(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {parse_options(["--trainer-image", "x"])[0].identity for _ in range(2)}
    assert len(outside) == 2
    monkeypatch.setenv("POD_ID", "trainyard-7d9-x")
    assert parse_options(["--trainer-image", "x"])[0].identity == "trainyard-7d9-x"


def test_log_lines_are_json() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        problem = (type(error), error, error.__traceback__)
    record = logging.LogRecord("trainyard", logging.ERROR, __file__, 1, "job %s", ("a",), problem)
    line = json.loads(JsonFormatter(with_logger=True).format(record))
    assert (line["level"], line["logger"], line["message"]) == ("error", "trainyard", "job a")
    assert "ValueError: no" in line["exception"]
    assert line["time"].endswith("+00:00")


# --- complete lists -------------------------------------------------------------------------------------------


class Api:
    """Answers lists."""

    def __init__(self, jobs: list[dict[str, Any]], pods: list[dict[str, Any]], version: int = 100) -> None:
        self.jobs, self.pods, self.version = jobs, pods, version
        self.error: ApiError | None = None
        self.streamed: list[Any] = []

    async def collect(self, path: str, selector: str, keep: Callable[[dict[str, Any]], Any]) -> tuple[list[Any], int]:
        if self.error:
            raise self.error
        bodies = self.jobs if "trainingjobs" in path else self.pods
        return [kept for body in bodies if (kept := keep(body))], self.version

    async def watch(self, path: str, query: Any, *, silence_seconds: float) -> AsyncGenerator[Any, None]:
        """The server streams no lists."""
        for event in self.streamed:
            yield event
        raise ApiError(422, "Invalid", "sendInitialEvents is forbidden")


def make_resync(api: Api, interval: float = 300.0) -> Resync:
    return Resync(api, Cache(), WorkQueue(), (), interval)  # type: ignore[arg-type]


def body(name: str = "job", version: int = 10) -> dict[str, Any]:
    return make_job(name, uid=f"uid-{name}", version=version).to_dict()


def test_priming_fills_the_cache_and_queues_each_job() -> None:
    async def scenario() -> None:
        resync = make_resync(Api([body("a"), body("b")], []))
        await resync.prime()
        assert resync.cache.primed
        assert len(resync.cache) == len(resync.queue) == 2
        assert not resync.watch_lost

    clock.run(scenario())


def test_each_namespace_is_listed_by_itself() -> None:
    """A list of all namespaces needs a right on the cluster."""
    asked: list[str] = []

    class Namespaces(Api):
        async def collect(
            self, path: str, selector: str, keep: Callable[[dict[str, Any]], Any]
        ) -> tuple[list[Any], int]:
            asked.append(path)
            self.jobs = [body(path.split("/")[5])] if "trainingjobs" in path else []
            return await super().collect(path, selector, keep)

    async def scenario() -> None:
        resync = Resync(Namespaces([], []), Cache(), WorkQueue(), ("a", "b"))  # type: ignore[arg-type]
        await resync.prime()
        assert len(resync.cache) == len(resync.queue) == 2

    clock.run(scenario())
    jobs = "/apis/trainyard.dev/v1alpha1/namespaces/{}/trainingjobs"
    assert asked == [path.format(name) for name in ("a", "b") for path in (jobs, "/api/v1/namespaces/{}/pods")]


def test_without_a_response_the_cache_is_not_filled() -> None:
    async def scenario() -> None:
        api = Api([], [])
        api.error = ApiError(404, "NotFound", "no such resource")
        resync = make_resync(api)
        with pytest.raises(ApiError):
            await resync.prime()
        assert not resync.cache.primed

    clock.run(scenario())


def test_a_job_that_cannot_be_read_is_neither_gone_nor_missed() -> None:
    async def scenario() -> None:
        strange = body("strange")
        api = Api([strange, body()], [])
        resync = make_resync(api)
        await resync.prime()
        strange["spec"]["workers"] = {"replicas": "many"}
        strange["metadata"]["resourceVersion"] = "20"
        resync.cache.put_job(read_job(strange))  # the stream
        await resync.check()
        assert not resync.watch_lost
        entry = resync.cache.get(("default", "strange"))
        assert entry is not None
        assert entry.unreadable is not None
        assert entry.unreadable.problem.startswith("spec.workers.replicas: must be a whole number, not 'many'; ")
        assert len(resync.cache) == len(resync.queue) == 2
        api.jobs = [body()]
        await resync.check()
        assert len(resync.cache) == 1, "it is gone when the API server says so"

    clock.run(scenario())


def test_a_stream_that_delivers_in_time_is_healthy() -> None:
    async def scenario() -> None:
        api = Api([body()], [])
        resync = make_resync(api)
        await resync.prime()
        api.jobs = [body(version=20)]
        check = asyncio.create_task(resync.check())
        await asyncio.sleep(GRACE / 2)
        resync.cache.put_job(make_job(uid="uid-job", version=20))  # the stream
        await check
        assert not resync.watch_lost

    clock.run(scenario())


def test_the_stream_of_a_busy_operator_may_be_late() -> None:
    async def scenario() -> None:
        api = Api([body()], [])
        resync = make_resync(api)
        await resync.prime()
        # It is a minute late, and then complete.
        api.jobs = [body(version=20)]
        check = asyncio.create_task(resync.check())
        await asyncio.sleep(MAX_LAG - GRACE / 2)
        resync.cache.put_job(make_job(uid="uid-job", version=20))
        await check
        assert not resync.watch_lost
        # It is even later, but delivers something.
        api.jobs = [body(version=40)]
        check = asyncio.create_task(resync.check())
        await asyncio.sleep(GRACE / 2)
        resync.cache.put_job(make_job(uid="uid-job", version=30))
        resync.cache.count_delivery(jobs=1)
        await check
        assert not resync.watch_lost
        assert resync.cache.count_missed([make_job(uid="uid-job", version=40)], [], 100) == (0, 0), "it is repaired"
        # Only the stream of the other kind delivers.
        api.jobs = [body(version=50)]
        resync.cache.count_delivery(jobs=1)
        check = asyncio.create_task(resync.check())
        await asyncio.sleep(GRACE / 2)
        resync.cache.count_delivery(pods=1)
        await check
        assert resync.watch_lost

    clock.run(scenario())


def test_a_stalled_stream_is_detected_and_repaired_and_recovers() -> None:
    async def scenario() -> None:
        api = Api([body()], [])
        resync = make_resync(api)
        await resync.prime()
        while len(resync.queue):
            resync.queue.done(await resync.queue.get())
        api.jobs = [body(version=20), body("new")]
        await resync.check()
        assert resync.watch_lost
        assert len(resync.cache) == len(resync.queue) == 2
        await resync.check()
        assert not resync.watch_lost

    clock.run(scenario())


def test_a_failed_list_does_not_end_the_resync() -> None:
    async def scenario() -> None:
        api = Api([body()], [])
        resync = make_resync(api, interval=100)
        await resync.prime()
        task = asyncio.create_task(resync.run())
        api.error = ApiError(0, "NoAnswer", "down")
        await asyncio.sleep(150)
        api.error, api.jobs = None, [body(version=30)]
        await asyncio.sleep(50 + MAX_LAG + 1)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert resync.watch_lost, "the second list was compared"

    clock.run(scenario())


def test_jobs_are_listed_when_kopf_has_listed_them_since_it_does_not_name_those_that_are_gone() -> None:
    async def scenario() -> None:
        api = Api([body("a"), body("b")], [])
        resync = make_resync(api)
        await resync.prime()
        while len(resync.queue):
            resync.queue.done(await resync.queue.get())
        listed = asyncio.Event()
        following = asyncio.create_task(resync.follow(listed))
        api.jobs, api.error = [body("b")], ApiError(0, "NoAnswer", "down")
        listed.set()
        await asyncio.sleep(LIST_RETRY * 2.5)
        assert len(resync.cache) == 2, "without an answer nothing is known"
        api.error = None
        await asyncio.sleep(LIST_RETRY)
        assert [key for key, _ in resync.cache.jobs()] == [("default", "b")]
        assert await resync.queue.get() == ("default", "a")
        assert len(resync.queue) == 0
        await asyncio.sleep(600)
        assert not listed.is_set()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    clock.run(scenario())


# --- health and metrics ---------------------------------------------------------------------------------------


def make_health(resync: Resync) -> Health:
    return Health(resync.cache, resync.queue, resync)


def test_liveness_fails_for_a_stalled_queue_and_for_a_stalled_stream() -> None:
    async def scenario() -> None:
        resync = make_resync(Api([], []))
        health = make_health(resync)
        await asyncio.sleep(1000)
        assert health.problems() == []
        resync.queue.add(KEY)
        await asyncio.sleep(STALLED + 1)
        assert health.problems() == ["the work queue has been stalled for 121 s"]
        await resync.queue.get()
        resync.queue.done(KEY)
        resync.watch_lost = True
        [problem] = health.problems()
        assert problem == "a watch stream is stalled: a complete list contained changes that it never delivered"

    clock.run(scenario())


async def test_the_pages_show_the_state_of_the_operator() -> None:
    resync = make_resync(Api([body()], []))
    metrics = OperatorMetrics(resync.cache, resync.queue)

    async def get(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
        async with session.get(path) as response:
            return response.status, await response.text()

    async with (
        serve(make_health(resync), metrics.registry, 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        assert await get(session, "/healthz") == (200, "ok\n")
        assert await get(session, "/readyz") == (503, "the cache is not filled yet\n")
        await resync.prime()
        assert await get(session, "/readyz") == (200, "ok\n")
        status, page = await get(session, "/metrics")
        assert status == 200
        assert "trainyard_operator_queue_depth 1.0" in page
        resync.watch_lost = True
        status, page = await get(session, "/healthz")
        assert (status, "stalled" in page) == (503, True)
        assert (await get(session, "/elsewhere"))[0] == 404


def test_an_api_server_that_does_not_answer_counts_as_a_stall() -> None:
    """A request to one that is down fails at once, and one to one that hangs after its time-out: before any alert."""

    async def scenario() -> None:
        queue = WorkQueue[Key]()
        metrics = OperatorMetrics(Cache(), queue)

        async def seconds_after(code: int) -> float:
            queue.add(KEY)
            metrics.count_request("PUT", code)
            queue.done(await queue.get())
            await asyncio.sleep(30)
            return metrics.registry.get_sample_value("trainyard_operator_queue_stalled_seconds") or 0.0

        assert [await seconds_after(code) for code in (200, 0, 503, 0, 409, 0)] == [0, 30, 60, 90, 0, 30]

    clock.run(scenario())


class LeaseOf:
    """Answers with a Lease that this holder keeps for a long time."""

    def __init__(self, holder: str) -> None:
        self.spec: dict[str, Any] = {"holderIdentity": holder, "leaseDurationSeconds": 3600}

    async def request(self, verb: str, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        return body if verb == "PUT" else {"metadata": {}, "spec": self.spec}


def test_a_standby_is_ready_and_a_leader_once_its_cache_is_filled() -> None:
    async def scenario() -> None:
        resync, api = make_resync(Api([], [])), LeaseOf("other")
        lease = Lease(api, "system", "trainyard", "mine")  # type: ignore[arg-type]
        health = Health(resync.cache, resync.queue, resync, lease)
        seen = [("nothing is known", health.ready)]
        acquiring = asyncio.create_task(lease.acquire())
        await asyncio.sleep(10)
        seen.append(("another one leads", health.ready))
        assert health.problems() == []
        api.spec = {"holderIdentity": ""}
        await acquiring
        seen.append(("it leads and knows no job yet", health.ready))
        await resync.prime()
        seen.append(("it leads", health.ready))
        assert [ready for _, ready in seen] == [False, True, False, True], seen

    clock.run(scenario())


async def test_the_metric_of_the_leader_is_one_while_it_works() -> None:
    metrics = OperatorMetrics(Cache(), WorkQueue[Key]())

    def value() -> float | None:
        return metrics.registry.get_sample_value("trainyard_operator_leader")

    assert value() == 0
    with metrics.leading():
        assert value() == 1
    assert value() == 0


async def test_requests_and_reconciliations_are_counted_by_outcome() -> None:
    metrics = OperatorMetrics(Cache(), WorkQueue[Key]())
    metrics.count_request("POST", 409)
    metrics.observe_reconcile(0.02, "Stale")
    page = generate_latest(metrics.registry).decode()
    assert 'trainyard_operator_api_requests_total{code="409",verb="POST"} 1.0' in page
    assert 'trainyard_operator_reconcile_duration_seconds_count{outcome="Stale"} 1.0' in page
