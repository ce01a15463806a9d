"""A cluster's API for tests: requests, a recording of everything that happens, and waiting with a deadline.

Deliberately not the operator's own client: that one is under test.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from trainyard.protocol import constants

T = TypeVar("T")
Object = dict[str, Any]

MERGE = "application/merge-patch+json"


class ApiRefusal(Exception):
    """An answer other than success."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@contextmanager
def unless_deleted() -> Iterator[None]:
    """Let a request about an object pass that has been deleted meanwhile."""
    try:
        yield
    except ApiRefusal as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise


class Api:
    """Requests with an administrator's rights."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(
        self, verb: str, path: str, body: Any = None, *, content_type: str = "application/json", **query: str
    ) -> Object:
        headers = {"Content-Type": content_type}
        data = json.dumps(body) if body is not None else None
        async with self._session.request(verb, path, data=data, headers=headers, params=query) as response:
            answer: Object = await response.json()
        if response.status >= 300:
            raise ApiRefusal(response.status, answer["message"])
        return answer

    async def get(self, path: str, **query: str) -> Object:
        """Read an object or a collection, also one whose watch cache is not filled yet (see `watch`)."""
        while True:
            try:
                return await self.request("GET", path, **query)
            except ApiRefusal as error:
                if error.code != 429:
                    raise
            await asyncio.sleep(1)

    async def post(self, path: str, body: Object, **query: str) -> Object:
        return await self.request("POST", path, body, **query)

    async def patch(self, path: str, body: Object) -> Object:
        return await self.request("PATCH", path, body, content_type=MERGE)

    async def delete(self, path: str, **options: Any) -> Object:
        return await self.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    async def watch(self, path: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """Events of a collection since a resource version.

        A watch that the API server ends, as that of a client which reads too slowly, continues after its last event.
        The watch cache of a kind that was installed a moment ago is not filled yet, and the API server says so by 429
        with the time after which to ask again; every client of Kubernetes does.

        Raises:
            ApiRefusal: with 410, the API server has not kept the changes since that version.
        """
        while True:
            query = {"watch": "true", "resourceVersion": version}
            async with self._session.get(path, params=query, timeout=aiohttp.ClientTimeout(total=None)) as response:
                if response.status == 429:
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                    continue
                if response.status >= 300:
                    raise ApiRefusal(response.status, await response.text())
                async for kind, body in _events(response):
                    version = body["metadata"]["resourceVersion"]
                    yield kind, body
            await asyncio.sleep(0.1)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Object]]:
    buffer = b""
    async for chunk in response.content.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise ApiRefusal(event["object"]["code"], event["object"]["message"])
            yield event["type"], event["object"]


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Api]:
    """Log in by a kubeconfig."""
    async with open_session(kubeconfig, limit=50) as session:
        yield Api(session)


@asynccontextmanager
async def open_session(kubeconfig: Path, *, limit: int) -> AsyncIterator[aiohttp.ClientSession]:
    """Log in by a kubeconfig, with a limit for the number of connections (0: none)."""
    settings = Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(kubeconfig), client_configuration=settings
    )
    context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    token = settings.api_key.get("BearerToken")
    headers = {"Authorization": token} if token else {}
    connector = aiohttp.TCPConnector(ssl=context, limit=limit)
    async with aiohttp.ClientSession(settings.host, connector=connector, headers=headers) as session:
        yield session


async def eventually(check: Callable[[], Awaitable[T]], *, seconds: float = 30.0) -> T:
    """Call `check` until it raises no AssertionError; its last one is raised when the time is up."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await check()
        except (AssertionError, aiohttp.ClientError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {error}") from error
        await asyncio.sleep(0.05)


class Namespace:
    """One namespace, with all that tests do in it."""

    def __init__(self, api: Api, name: str) -> None:
        self.api, self.name = api, name

    def jobs(self, name: str = "", subresource: str = "") -> str:
        return _join(f"/apis/{constants.API_VERSION}/namespaces/{self.name}/{constants.PLURAL}", name, subresource)

    def core(self, plural: str, name: str = "", subresource: str = "") -> str:
        return _join(f"/api/v1/namespaces/{self.name}/{plural}", name, subresource)

    async def create_job(self, manifest: Object) -> Object:
        manifest = {**manifest, "metadata": {**manifest["metadata"], "namespace": self.name}}
        return await self.api.post(self.jobs(), manifest, fieldValidation="Strict")

    async def job(self, name: str = "job") -> Object:
        return await self.api.get(self.jobs(name))

    async def edit(self, spec: Object, name: str = "job") -> Object:
        return await self.api.patch(self.jobs(name), {"spec": spec})

    async def pods(self) -> dict[str, Object]:
        items = (await self.api.get(self.core("pods")))["items"]
        return {pod["metadata"]["name"]: pod for pod in items}

    async def events(self) -> list[Object]:
        items: list[Object] = (await self.api.get(self.core("events")))["items"]
        return items

    async def has_phase(self, phase: str, name: str = "job", *, seconds: float = 30.0) -> Object:
        """Wait for a phase; returns the status."""

        async def check() -> Object:
            status: Object = (await self.job(name)).get("status", {})
            assert status.get("phase") == phase, f"{status.get('phase')}: {status.get('conditions')}"
            return status

        return await eventually(check, seconds=seconds)

    async def has_condition(self, kind: str, status: str, reason: str, *, seconds: float = 30.0) -> Object:
        """Wait for a condition of the job named job; returns it."""

        async def check() -> Object:
            conditions = (await self.job()).get("status", {}).get("conditions", [])
            found: Object = next((c for c in conditions if c["type"] == kind), {})
            assert (found.get("status"), found.get("reason")) == (status, reason), conditions
            return found

        return await eventually(check, seconds=seconds)

    async def has_pods(self, *names: str, seconds: float = 30.0) -> dict[str, Object]:
        """Wait until exactly these pods exist."""

        async def check() -> dict[str, Object]:
            pods = await self.pods()
            assert set(pods) == set(names)
            return pods

        return await eventually(check, seconds=seconds)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
