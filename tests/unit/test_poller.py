"""The poller of metrics pages, over real sockets: each job is read by itself, and what hurts costs only its own job."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from tests.builders import NOW, after, make_job, make_pod, trainer_spec
from tests.support import kubelet
from tests.support.fake_cluster import FakeCluster, FakeClusterBackend
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller import progress
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry
from trainyard_operator.controller.pod_calls import MAX_WAIT, CallSchedule
from trainyard_operator.controller.progress import ProgressPoller, rank_zero
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import WorkerPod
from trainyard_operator.pod_input import metrics_page

PAGE = "trainyard_steps_total 50\n"
INTERVAL = 0.01


class Backend(FakeClusterBackend):
    """Sends the poller to the URL of each job."""

    def __init__(self, urls: Mapping[str, URL | None]) -> None:
        super().__init__(FakeCluster())
        self.urls = urls
        self.asked: list[str] = []

    def metrics_url(self, job: TrainingJob, worker: WorkerPod) -> URL | None:
        self.asked.append(worker.name)
        return self.urls.get(job.metadata.name)


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Any]) -> AsyncIterator[URL]:
    """Serve a metrics page."""

    async def page(request: web.Request) -> web.StreamResponse:
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield URL.build(scheme="http", host="127.0.0.1", port=runner.addresses[0][1], path="/metrics")
    finally:
        await runner.cleanup()


@asynccontextmanager
async def listening(says: bytes) -> AsyncIterator[URL]:
    """Accept connections, send some bytes, and then nothing for ever."""
    open_connections = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections.append(writer)
        writer.write(says)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield URL.build(scheme="http", host="127.0.0.1", port=server.sockets[0].getsockname()[1], path="/metrics")
    finally:
        server.close()
        for writer in open_connections:
            writer.close()


def text(page: str, **headers: str) -> Callable[[web.Request], web.Response]:
    return lambda _: web.Response(text=page, headers=headers)


def running_job(name: str = "job", **spec: Any) -> TrainingJob:
    condition = {"type": "Running", "status": "True", "reason": "r", "lastTransitionTime": kubelet.zulu(NOW)}
    spec = spec or {"trainer": trainer_spec()}
    return make_job(name, uid=f"uid-{name}", status={"attempt": 2, "conditions": [condition]}, **spec)


class Polling:
    """A poller on some jobs."""

    def __init__(self, urls: Mapping[str, URL | None], *jobs: TrainingJob) -> None:
        self.cache, self.queue, self.backend, self.now = Cache(), WorkQueue[Key](), Backend(urls), NOW
        for job in jobs or [running_job(name) for name in urls]:
            self.cache.put_job(job)
            for index in range(2):
                pod = make_pod(job, index, attempt=2, status=kubelet.running(NOW), uid=f"{job.metadata.name}-{index}")
                self.cache.put_pod(pod)
        self.poller = ProgressPoller(self.cache, self.queue, self.backend, lambda: self.now, interval=INTERVAL)

    def entry(self, name: str = "job") -> Entry:
        entry = self.cache.get(("default", name))
        assert entry is not None
        return entry

    def problem(self, name: str = "job") -> str | None:
        found = self.entry(name).page_problem
        return found.message if found is not None else None

    def schedule(self, name: str = "job") -> CallSchedule:
        return self.poller._schedules["default", name]

    async def until(self, condition: Callable[[], object]) -> None:
        """Poll until a condition holds."""
        task = asyncio.create_task(self.poller.run())
        try:
            async with asyncio.timeout(20):
                while not condition():
                    assert not task.done(), "the poller has ended"
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_progress_of_rank_0_is_cached_and_its_job_queued() -> None:
    async with serving(text(PAGE)) as url:
        polling = Polling({"job": url})
        await polling.until(lambda: len(polling.queue))
    progress = polling.entry().progress
    assert progress is not None
    assert (progress.step, progress.attempt) == (50, 2)
    assert set(polling.backend.asked) == {"job-2-0"}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda _: web.Response(status=404), "HTTP status 404 instead of 200"),
        (
            lambda _: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
            "HTTP status 302 instead of 200",
        ),
        (text(PAGE, **{"Content-Encoding": "gzip"}), "the response is compressed"),
    ],
    ids=["not found", "moved", "compressed"],
)
async def test_a_page_that_cannot_be_read_for_long_is_reported(answer: Any, problem: str) -> None:
    async with serving(answer) as url:
        polling = Polling({"job": url})
        await polling.until(polling.problem)
    assert polling.problem() == f"metrics page of pod job-2-0: cannot be read: ValueError: {problem}" + (
        ", although it must not be" if "compressed" in problem else ""
    )
    assert polling.schedule().failures >= 4
    assert polling.entry().progress is None
    assert len(polling.queue) == 1


async def test_a_port_on_which_nothing_listens_is_asked_regularly_and_reported_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that is still starting has not opened its port."""
    async with serving(text(PAGE)) as url:
        pass
    assert url is not None
    urls: dict[str, URL | None] = {"job": url}
    polling = Polling(urls)
    await polling.until(lambda: polling.poller._schedules and polling.schedule().refused_since is not None)
    assert polling.schedule().due - asyncio.get_running_loop().time() <= polling.poller.interval
    assert (polling.schedule().failures, polling.problem()) == (0, None)
    monkeypatch.setattr(progress, "_REFUSED_SECONDS", 0.0)
    await polling.until(polling.problem)
    assert f"nothing listens on port {url.port} of the pod" in (polling.problem() or "")
    async with serving(text(PAGE)) as urls["job"]:
        await polling.until(lambda: polling.entry().progress)
    assert polling.schedule().refused_since is None


async def test_a_problem_of_the_page_is_reported_at_once_and_the_rest_counts() -> None:
    async with serving(text('trainyard_straggler_ratio{rank="inf"} 2\n' + PAGE)) as url:
        polling = Polling({"job": url})
        await polling.until(lambda: polling.entry().progress)
    problem = "trainyard_straggler_ratio has a label rank that must be a number from 0 to 2147483647"
    assert polling.problem() == f"metrics page of pod job-2-0: {problem}"


async def test_the_first_problem_stays_until_there_was_none_for_a_while() -> None:
    """A page that changes at each reading must not cause a write at each reading."""
    pages = ["trainyard_loss a\n", "trainyard_loss b\n", PAGE, PAGE]
    seen: list[str | None] = []
    served = []

    def answer(_: web.Request) -> web.Response:
        served.append(1)
        return web.Response(text=pages[min(len(served), len(pages)) - 1])

    async with serving(answer) as url:
        polling = Polling({"job": url})
        while len(served) < 3:
            await polling.until(lambda: len(served) > len(seen) and not polling.schedule().in_flight)
            seen.append(polling.problem())
        assert seen[0] is not None
        assert seen[0].endswith('"a"')
        assert set(seen) == {seen[0]}
        polling.now = after(301)
        await polling.until(lambda: polling.problem() is None)


@pytest.mark.parametrize("says", [b"", HEAD, HEAD + b"\r\ntrainyard_steps_total ", HEAD + b"X: " + b"y" * 100_000])
async def test_pods_that_say_nothing_more_do_not_delay_the_others(says: bytes) -> None:
    async with listening(says) as silent, serving(text(PAGE)) as url:
        polling = Polling({f"silent-{i}": silent for i in range(100)} | {"honest": url})
        await polling.until(lambda: polling.backend.asked.count("honest-2-0") >= 10)
        assert max(polling.backend.asked.count(f"silent-{i}-2-0") for i in range(100)) < 10


async def test_the_pages_of_many_jobs_are_not_read_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator has one thread, and a job that waits for a decision would wait for all pages."""
    monkeypatch.setattr(progress, "_BETWEEN_STARTS", 0.05)
    async with serving(text(PAGE)) as url:
        polling = Polling({f"job-{number}": url for number in range(20)})
        started = asyncio.get_running_loop().time()
        await polling.until(lambda: all(polling.entry(f"job-{number}").progress for number in range(20)))
        assert asyncio.get_running_loop().time() - started >= 19 * 0.05
        assert len(polling.queue) == 20


async def test_a_page_without_end_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"#" * 65_536)
            sent += 65_536

    async with serving(answer) as endless, serving(text(PAGE)) as url:
        polling = Polling({"endless": endless, "honest": url})
        await polling.until(lambda: polling.problem("endless") and polling.entry("honest").progress)
    assert "the page has more than 2097152 bytes" in (polling.problem("endless") or "")
    assert sent < 3 * metrics_page.MAX_PAGE_BYTES
    assert polling.schedule("endless").due > asyncio.get_running_loop().time() + 20, "it is read less often"


async def test_a_defect_costs_only_its_own_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reader of pages raises, the poller and the other jobs go on."""
    honest = metrics_page.PageReader.feed

    def feed(reader: metrics_page.PageReader, piece: bytes) -> bool:
        if b"bad" in piece:
            raise OverflowError("cannot convert float infinity to integer")
        return honest(reader, piece)

    monkeypatch.setattr(metrics_page.PageReader, "feed", feed)
    async with serving(text("bad")) as bad, serving(text(PAGE)) as url:
        polling = Polling({"bad": bad, "honest": url})
        await polling.until(lambda: polling.problem("bad") and polling.entry("honest").progress)
    assert "unexpected error of the operator, see its log" in (polling.problem("bad") or "")
    assert "default/bad: unexpected error while its metrics page was read" in caplog.text


async def test_waits_between_failed_readings_grow_up_to_a_minute() -> None:
    schedule, loop = CallSchedule("uid"), asyncio.get_running_loop()
    waits = []
    for _ in range(8):
        schedule.failed(5.0)
        waits.append(round(schedule.due - loop.time()))
    assert waits == [5, 10, 20, 40, MAX_WAIT, MAX_WAIT, MAX_WAIT, MAX_WAIT]
    schedule.succeeded(5.0)
    assert (schedule.failures, round(schedule.due - loop.time())) == (0, 5)


async def test_a_new_pod_is_read_without_delay() -> None:
    async with listening(b"") as silent, serving(text(PAGE)) as url:
        urls: dict[str, URL | None] = {"job": silent}
        polling = Polling(urls)
        await polling.until(lambda: polling.backend.asked)
        polling.poller._schedules["default", "job"].failures = 9
        polling.poller._schedules["default", "job"].due = asyncio.get_running_loop().time() + 60
        urls["job"] = url
        pod = make_pod(running_job(), 0, attempt=2, status=kubelet.running(NOW), uid="new", version=2)
        polling.cache.put_pod(pod)
        await polling.until(lambda: polling.entry().progress)


@pytest.mark.parametrize("kind", ["your own program", "a job that is not running", "a pod of another owner"])
async def test_pods_that_serve_no_metrics_of_the_job_are_not_called(kind: str) -> None:
    job = running_job(replicas=2) if kind == "your own program" else running_job()
    if kind == "a job that is not running":
        job = make_job("job", uid="uid-job", trainer=trainer_spec())
    polling = Polling({"job": None}, job)
    if kind == "a pod of another owner":
        pod = make_pod(job, 0, attempt=2, status=kubelet.running(NOW), uid="stranger", version=5)
        pod["metadata"]["ownerReferences"][0]["uid"] = "another"
        polling.cache.put_pod(pod)
    assert rank_zero(polling.entry()) is None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await polling.until(lambda: polling.backend.asked)
