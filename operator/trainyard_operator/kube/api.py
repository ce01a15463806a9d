"""An asynchronous API client: plain dictionaries over the transport of the kubernetes package.

The package's typed models cost more time per pod than the request itself, so they are not used. Login, TLS, connection
pool and token refresh are the package's.
"""

import asyncio
import builtins
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from trainyard_operator.kube.fair_slots import FairSlots
from trainyard_operator.pod_input.text import clean_text

T = TypeVar("T")

PER_JOB = 50
"""Creations and deletions of one job in flight at a time. With 50 an API server creates about 340 pods per second; its
own priority and fairness queues protect it from more, so the client has no rate limit."""

IN_FLIGHT = 75
"""Creations and deletions of all jobs in flight at a time: a job whose requests hang leaves slots for the others."""

DIRECT = 25
"""All other requests in flight at a time: each reconciliation sends them one by one, so they need no division."""

PAGE = 500
"""Objects per page of a list."""

CONNECT_SECONDS = 30.0
"""Time for a connection of a watch."""

MERGE_PATCH = "application/merge-patch+json"


MAX_MESSAGE = 2048
"""Characters of a message of the API server that are kept: it may quote what a user wrote, of any length."""


class ApiError(Exception):
    """A response other than success.

    Args:
        code: HTTP status, or 0 if there was no response.
        reason: reason in the response, in one word.
        message: message in the response.
        retry_after: seconds that the server wants the client to wait; 0 if it says nothing.
        details: `details` of the response, which say what the error is about.
    """

    def __init__(
        self, code: int, reason: str, message: str, retry_after: float = 0.0, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(clean_text(message, MAX_MESSAGE))
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        self.details = details or {}

    def has_cause(self, reason: str) -> bool:
        """Return whether the response names a cause with this reason."""
        return any(cause.get("reason") == reason for cause in self.details.get("causes") or ())


class KubeApi:
    """Requests against one API server, a limited number at a time (`PER_JOB`, `IN_FLIGHT`, `DIRECT`)."""

    def __init__(self, client: ApiClient, count: Callable[[str, int], None] = lambda _verb, _code: None) -> None:
        self._client = client
        self._slots = FairSlots(IN_FLIGHT, PER_JOB)
        self._direct = asyncio.Semaphore(DIRECT)
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
        flow: str | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the object in the response.

        Args:
            verb: HTTP method.
            path: path of the object or collection.
            body: object to send, if any.
            query: parameters of the query.
            content_type: media type of the body.
            timeout_seconds: time for the response.
            flow: name of the job for which many requests are sent at a time, which share slots of their own fairly
                with those of other jobs; None for a single request.

        Raises:
            ApiError: the server rejected the request, or did not answer within `timeout_seconds`.
        """
        async with self._direct if flow is None else self._slots.slot(flow):
            code, text, retry_after = await self._send(verb, path, body, query, content_type, timeout_seconds)
        self._count(verb, code)
        answer = _parse(text)
        if 200 <= code < 300:
            return answer
        raise _error(code, answer, retry_after)

    async def watch(
        self, path: str, query: Mapping[str, str], *, silence_seconds: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of a watch, each with `type` and `object`, until the server ends it.

        It takes no slot of `DIRECT`. Close the iterator (`contextlib.aclosing`), which closes the connection.

        Args:
            path: path of the collection.
            query: parameters of the query besides `watch`.
            silence_seconds: time after which a connection without any event counts as broken.

        Raises:
            ApiError: the server refused the watch or ended it with an error (code 410: it continues from too old a
                version), or the connection broke.
        """
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        response: aiohttp.ClientResponse | None = None
        try:
            opened = await self._open("GET", path, None, {"watch": "true", **query}, "application/json", limit)
            response = opened.response
            self._count("WATCH", response.status)
            if response.status != 200:
                raise _error(response.status, _parse(await response.text()), response.headers.get("Retry-After", ""))
            async with aclosing(_lines(response)) as lines:
                async for line in lines:
                    event = _parse(line)
                    if not isinstance(event.get("object"), dict):
                        raise ApiError(0, "NoAnswer", f"not an event of a watch: {line[:200]}")
                    if event.get("type") == "ERROR":
                        raise _error(int(event["object"].get("code") or 500), event["object"])
                    yield event
        except _NO_ANSWER as error:
            raise self._no_answer("WATCH", error) from error
        finally:
            if response is not None:
                response.close()

    async def _send(
        self, verb: str, path: str, body: Any, query: dict[str, str] | None, content_type: str, timeout_seconds: float
    ) -> tuple[int, str, str]:
        """Send one request and return the status, the text and the header Retry-After of the response."""
        try:
            response = await self._open(verb, path, body, query, content_type, timeout_seconds)
            return response.status, (await response.read()).decode(), response.headers.get("Retry-After", "")
        except _NO_ANSWER as error:
            raise self._no_answer(verb, error) from error

    async def _open(
        self,
        verb: str,
        path: str,
        body: Any,
        query: Mapping[str, str] | None,
        content_type: str,
        limit: float | aiohttp.ClientTimeout,
    ) -> Any:
        """Send one request and return the response, of which only the headers have arrived."""
        client = self._client
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "trainyard-operator"}
        # Read for each request, since the token of a service account is rotated.
        await client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
        return await client.call_api(verb, url, headers, body, _request_timeout=limit)

    def _no_answer(self, verb: str, error: Exception) -> ApiError:
        """Count a request without an answer, and return the error that it stands for."""
        self._count(verb, 0)
        return ApiError(0, "NoAnswer", f"{type(error).__name__}: {error}".removesuffix(": "))

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


_NO_ANSWER = (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError)
"""Exceptions of the transport when there is no answer, or no complete one."""


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[str, None]:
    """Yield the lines of a response as they arrive; a last one that is not complete is dropped."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")


def _parse(text: str) -> dict[str, Any]:
    """Return the object that a response describes; one with a message if it is not JSON, as that of a proxy."""
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        return {"message": text[:500]}
    return answer


def _error(code: int, answer: Mapping[str, Any], retry_after: str = "") -> ApiError:
    """Return the error that a Status stands for."""
    message = str(answer.get("message", "")) or f"HTTP {code}"
    return ApiError(code, str(answer.get("reason", "")), message, _seconds(retry_after), answer.get("details"))


def _seconds(retry_after: str) -> float:
    """Return the seconds of a header Retry-After; 0 if it is absent or a date, which API servers do not send."""
    return float(retry_after) if retry_after.isdecimal() else 0.0


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
    configuration.connection_pool_maxsize = IN_FLIGHT + DIRECT + 2  # the watch, and a list that is streamed
    configuration.retries = False  # the work queue retries
    configuration.proxy = configuration.proxy or _environment_proxy(configuration.host)
    # With it the transport would look for the server's name in a file ~/.netrc, in a thread, for each request.
    configuration.client_session_kwargs = {"trust_env": False}
    async with ApiClient(configuration) as client:
        yield KubeApi(client, count)


def _environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment (HTTPS_PROXY, NO_PROXY) names for a server; None if it names none."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
