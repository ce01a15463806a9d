"""An asynchronous API client: plain dictionaries over the transport of the kubernetes package.

The package's typed models cost more time per pod than the request itself, so they are not used. Login, TLS, connection
pool and token refresh are the package's.
"""

import asyncio
import builtins
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

T = TypeVar("T")

IN_FLIGHT = 50
"""Requests in flight at a time. With 50 an API server creates about 340 pods per second; its own priority and fairness
queues protect it from more, so the client has no rate limit."""

PAGE = 500
"""Objects per page of a list."""

MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """A response other than success. `code` is the HTTP status, or 0 if there was no response."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class KubeApi:
    """Requests against one API server, at most `IN_FLIGHT` at a time."""

    def __init__(self, client: ApiClient, count: Callable[[str, int], None] = lambda _verb, _code: None) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._count = count

    async def request(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = 30.0,
    ) -> dict[str, Any]:
        """Send one request and return the object in the response.

        Raises:
            ApiError: the server rejected the request, or did not answer within `timeout_seconds`.
        """
        async with self._slots:
            code, text = await self._send(verb, path, body, query, content_type, timeout_seconds)
        self._count(verb, code)
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            answer = {"message": text[:500]}
        if 200 <= code < 300:
            return answer
        raise ApiError(code, str(answer.get("reason", "")), str(answer.get("message", "")) or f"HTTP {code}")

    async def _send(
        self, verb: str, path: str, body: Any, query: dict[str, str] | None, content_type: str, timeout_seconds: float
    ) -> tuple[int, str]:
        client = self._client
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "trainyard-operator"}
        try:
            # Read for each request, since the token of a service account is rotated.
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
            response = await client.call_api(verb, url, headers, body, _request_timeout=timeout_seconds)
            return response.status, (await response.read()).decode()
        except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
            self._count(verb, 0)
            raise ApiError(0, "NoAnswer", f"{type(error).__name__}: {error}".removesuffix(": ")) from error

    async def list(self, path: str, selector: str = "") -> tuple[list[dict[str, Any]], int]:
        """Return all objects of a collection, and the resource version of the list.

        Raises:
            ApiError: the server rejected a request, or did not answer.
        """
        return await self.collect(path, selector, lambda item: item)

    async def collect(
        self, path: str, selector: str, keep: Callable[[dict[str, Any]], T | None]
    ) -> tuple[builtins.list[T], int]:
        """Return what `keep` keeps of each object of a collection, and the resource version of the list.

        The collection is read page by page, so no more than one page of complete objects is in memory. An object for
        which `keep` returns None is left out.

        Raises:
            ApiError: the server rejected a request, or did not answer.
        """
        kept: builtins.list[T] = []
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self.request("GET", path, query=query)
            kept += [found for item in page.get("items") or [] if (found := keep(item)) is not None]
            if not page["metadata"].get("continue"):
                return kept, int(page["metadata"]["resourceVersion"])
            query = {**query, "continue": page["metadata"]["continue"]}


@asynccontextmanager
async def connect(count: Callable[[str, int], None] = lambda _verb, _code: None) -> AsyncIterator[KubeApi]:
    """Log in by the pod's service account, or else by kubeconfig, and close the connections at the end.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = IN_FLIGHT
    configuration.retries = False  # the work queue retries
    async with ApiClient(configuration) as client:
        yield KubeApi(client, count)
