"""The watch of pods, on an HTTP server that answers as an API server does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from tests.builders import NOW, make_job, make_pod
from tests.support import kubelet
from tests.support.kube import eventually
from trainyard_operator.controller.cache import Cache, CachedPod, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube import pod_watch
from trainyard_operator.kube.api import ApiError, KubeApi
from trainyard_operator.kube.pod_watch import PodWatch, snapshot, watch_pods

PATH = "/api/v1/pods"
KEY = ("default", "job")
Object = dict[str, Any]
Answer = Callable[[dict[str, str]], Any]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_watch, "FIRST_BACKOFF", 0.01)


def event(kind: str, body: Object) -> str:
    return json.dumps({"type": kind, "object": body}) + "\n"


def bookmark(version: int, *, end: bool = False) -> str:
    annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if end else {}
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version), **annotations}})


def failure(code: int, reason: str = "", **more: Any) -> Object:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"error {code}", **more}


def pod(index: int = 0, version: int = 1, status: kubelet.Status | None = None, **fields: Any) -> Object:
    body = make_pod(make_job(), index, version=version, status=status, **fields)
    body["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    return body


def refuse(code: int, **more: Any) -> web.Response:
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    return web.json_response(failure(code, **more), status=code, headers=headers)


class Server:
    """Answers requests from a script: each entry is an answer, or the lines of a watch that then ends."""

    def __init__(self, *script: web.Response | list[str]) -> None:
        self.script = list(script)
        self.queries: list[dict[str, str]] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        answer = self.script.pop(0) if self.script else None
        if isinstance(answer, web.Response):
            return answer
        response = web.StreamResponse()
        await response.prepare(request)
        for line in answer or ():
            await response.write(line.encode())
        if answer is None:
            await asyncio.sleep(60)  # a watch without events
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[KubeApi]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client = ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
        try:
            yield KubeApi(client)
        finally:
            await client.close()  # type: ignore[no-untyped-call]
            await runner.cleanup()


class Watched:
    """A watch with its cache and its queue."""

    def __init__(self, api: KubeApi, version: int | None = 100, namespace: str | None = None) -> None:
        self.cache, self.queue = Cache(), WorkQueue[Key]()
        self.cache.put_job(make_job(replicas=3))
        self.watch = PodWatch(api, self.cache, self.queue, namespace, version)

    @property
    def pods(self) -> dict[str, int]:
        entry = self.cache.get(KEY)
        assert entry is not None
        return {name: worker.resource_version for name, worker in entry.workers.items()}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.watch.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(check: Callable[[], bool]) -> None:
    async def checked() -> None:
        assert check()

    await eventually(checked, seconds=5)


async def test_events_reach_the_cache_and_the_queue() -> None:
    server = Server([event("ADDED", pod(0, 101)), event("MODIFIED", pod(0, 102, kubelet.running(NOW)))])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: watched.pods == {"job-1-0": 102})
            assert len(watched.queue) == 1
            assert watched.cache.delivered.pods == 2
    assert server.queries[0].items() >= {
        ("watch", "true"),
        ("labelSelector", "trainyard.dev/job-name"),
        ("resourceVersion", "100"),
        ("allowWatchBookmarks", "true"),
    }
    assert 300 <= int(server.queries[0]["timeoutSeconds"]) <= 600, "not all watches of a cluster end together"


async def test_an_event_in_pieces_is_one_event_and_a_torn_one_is_none() -> None:
    line = event("ADDED", pod(0, 101))
    server = Server([line[:500], line[500:], event("ADDED", pod(1, 102))[:300]])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: len(server.queries) == 2)
            assert watched.pods == {"job-1-0": 101}
    assert server.queries[1]["resourceVersion"] == "101"


async def test_a_deleted_pod_leaves_the_cache() -> None:
    server = Server([event("ADDED", pod(0, 101)), event("DELETED", pod(0, 105))])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: watched.watch.version == 105)
            assert watched.pods == {}


async def test_a_watch_that_ends_continues_where_it_was() -> None:
    server = Server([event("ADDED", pod(0, 101)), bookmark(150)], [event("ADDED", pod(1, 151))])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: len(server.queries) == 3)
            assert watched.pods == {"job-1-0": 101, "job-1-1": 151}
    assert [query["resourceVersion"] for query in server.queries] == ["100", "150", "151"]


@pytest.mark.parametrize(
    "expired",
    [
        refuse(410, reason="Expired"),
        [event("ADDED", pod(5, 101)), event("ERROR", failure(410, "Expired"))],
        refuse(504, details={"causes": [{"reason": "ResourceVersionTooLarge"}]}),
    ],
    ids=["HTTP status", "event", "a database that was restored"],
)
async def test_a_watch_that_cannot_continue_lists_the_pods_again(expired: Any) -> None:
    listed = [event("ADDED", pod(1, 190)), event("ADDED", pod(2, 195)), bookmark(200, end=True)]
    server = Server(expired, listed, [event("MODIFIED", pod(1, 201))])
    async with server.serving() as api:
        watched = Watched(api)
        watched.cache.put_pod(pod(0, 50))
        async with watched.running():
            await until(lambda: len(server.queries) == 4)
            assert watched.pods == {"job-1-1": 201, "job-1-2": 195}, "what is gone is gone"
            assert len(watched.queue) == 1
    assert server.queries[1]["sendInitialEvents"] == "true"
    assert server.queries[1]["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in server.queries[1], "as new as the database"
    assert server.queries[2]["resourceVersion"] == "200"


async def test_a_server_without_streamed_lists_is_asked_for_pages() -> None:
    first = {"items": [pod(0, 90)], "metadata": {"resourceVersion": "200", "continue": "next"}}
    second = {"items": [pod(1, 91)], "metadata": {"resourceVersion": "200"}}
    refusal = refuse(422, reason="Invalid")
    server = Server(refusal, web.json_response(first), web.json_response(second))
    async with server.serving() as api:
        watched = Watched(api, version=None)
        async with watched.running():
            await until(lambda: len(server.queries) == 4)
            assert watched.pods == {"job-1-0": 90, "job-1-1": 91}
    assert server.queries[2]["continue"] == "next"
    assert server.queries[3]["resourceVersion"] == "200"


async def test_a_server_that_ignores_the_parameters_of_a_streamed_list_is_asked_for_pages() -> None:
    page = {"items": [pod(0, 90)], "metadata": {"resourceVersion": "200"}}
    server = Server([event("ADDED", pod(7, 80))], web.json_response(page))
    async with server.serving() as api:
        pods, version = await snapshot(api, PATH, "x", CachedPod.read)
    assert ([found.worker.name for found in pods], version) == (["job-1-0"], 200)


async def test_a_streamed_list_may_be_overtaken_by_changes() -> None:
    lines = [event("ADDED", pod(0, 1)), event("ADDED", pod(1, 2)), event("MODIFIED", pod(0, 3)), bookmark(4)]
    server = Server([*lines, event("DELETED", pod(1, 5)), bookmark(6, end=True)])
    async with server.serving() as api:
        pods, version = await snapshot(api, PATH, "x", CachedPod.read)
    assert ([(found.worker.name, found.worker.resource_version) for found in pods], version) == ([("job-1-0", 3)], 6)


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_errors_that_pass_end_nothing(code: int) -> None:
    server = Server(refuse(code), [event("ERROR", failure(500))], [event("ADDED", pod(0, 101))])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: watched.pods == {"job-1-0": 101})
    assert [query["resourceVersion"] for query in server.queries[:3]] == ["100"] * 3


async def test_the_server_says_how_long_to_wait() -> None:
    server = Server(refuse(429, retry_after=1), [event("ADDED", pod(0, 101))])
    async with server.serving() as api:
        watched, started = Watched(api), asyncio.get_running_loop().time()
        async with watched.running():
            await until(lambda: watched.pods != {})
        assert asyncio.get_running_loop().time() - started >= 1


@pytest.mark.parametrize("code", [401, 403])
async def test_a_server_that_has_just_started_denies_the_watch_for_a_while(code: int) -> None:
    server = Server(
        refuse(code), refuse(code), [event("ADDED", pod(0, 101))], refuse(code), [event("ADDED", pod(1, 102))]
    )
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: watched.pods == {"job-1-0": 101, "job-1-1": 102})
    assert [query["resourceVersion"] for query in server.queries[:5]] == ["100", "100", "100", "101", "101"]


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_a_missing_permission_ends_this_part_which_reports_it(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(pod_watch, "DENIED_SECONDS", 0.3)
    monkeypatch.setattr(pod_watch, "FIRST_BACKOFF", 0.05)
    server = Server(*(refuse(code) for _ in range(20)))
    async with server.serving() as api:
        watched = Watched(api)
        with pytest.raises(ApiError, match=f"error {code}"):
            await watched.watch.run()
        assert watched.watch.version == 100, "the next start continues there"
    assert (len(server.queries) > 2) == (code != 404), "only a denial may pass"


async def test_a_watch_that_has_delivered_something_is_opened_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_row: list[int] = []

    def note(_first: float, times: int, _longest: float) -> float:
        in_a_row.append(times)
        return 0.0

    monkeypatch.setattr(pod_watch, "doubled", note)
    short = [event("ADDED", pod(0, 101))]
    server = Server([], [bookmark(100)], short, short, [event("ERROR", failure(500))], [], short)
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: len(server.queries) == 8)
    assert in_a_row == [1, 2, 1, 1, 2, 3, 1]


async def test_a_server_that_is_down_is_asked_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_watch, "FIRST_BACKOFF", 0.05)
    counted: list[tuple[str, int]] = []
    client = ApiClient(Configuration(host="http://127.0.0.1:1"))
    watched = Watched(KubeApi(client, lambda verb, code: counted.append((verb, code))))
    async with watched.running() as task:
        await asyncio.sleep(1)
        assert not task.done()
    await client.close()  # type: ignore[no-untyped-call]
    assert set(counted) == {("WATCH", 0)}
    assert 3 <= len(counted) <= 7, "after 0.05 s, 0.1 s, 0.2 s, ... or a little less"


async def test_a_silent_connection_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_watch, "SILENCE_SECONDS", 0.2)
    server = Server()
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: len(server.queries) >= 2)


async def test_a_pod_that_the_operator_cannot_read_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    broken = pod(0, 101)
    broken["status"] = {"conditions": [{}]}
    server = Server([event("ADDED", broken), event("ADDED", pod(1, 102))])
    async with server.serving() as api:
        watched = Watched(api)
        async with watched.running():
            await until(lambda: watched.pods == {"job-1-1": 102})
    assert "unexpected error in an event of pod job-1-0" in caplog.text


async def test_one_namespace_is_watched_where_the_operator_has_only_that() -> None:
    paths: list[str] = []

    class OneNamespace(Server):
        async def _handle(self, request: web.Request) -> web.StreamResponse:
            paths.append(request.path)
            return await super()._handle(request)

    server = OneNamespace()
    async with server.serving() as api, Watched(api, namespace="team").running():
        await until(lambda: paths != [])
    assert paths == ["/api/v1/namespaces/team/pods"]


async def test_a_new_list_of_one_namespace_removes_no_pod_of_another() -> None:
    server = Server([event("ADDED", pod(1, 190)), bookmark(200, end=True)])
    elsewhere = pod(0, 50)
    elsewhere["metadata"] |= {"namespace": "elsewhere", "uid": "elsewhere"}
    async with server.serving() as api:
        watched = Watched(api, version=None, namespace=KEY[0])
        watched.cache.put_pod(pod(0, 50))
        watched.cache.put_pod(elsewhere)
        async with watched.running():
            await until(lambda: watched.pods == {"job-1-1": 190})
        assert watched.cache.find_pod(elsewhere)[0] is not None


async def test_several_namespaces_are_watched_side_by_side() -> None:
    paths: list[str] = []

    class Namespaces(Server):
        async def _handle(self, request: web.Request) -> web.StreamResponse:
            paths.append(request.path)
            return await super()._handle(request)

    async with Namespaces().serving() as api:
        watches = [Watched(api, namespace=name).watch for name in ("a", "b")]
        task = asyncio.create_task(watch_pods(watches))
        await until(lambda: len(paths) == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert sorted(paths) == ["/api/v1/namespaces/a/pods", "/api/v1/namespaces/b/pods"]
