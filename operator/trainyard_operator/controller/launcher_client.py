"""Requests to the launchers in pods (`trainyard.protocol.launcher_state`), shared by all backends."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp

from trainyard.protocol.launcher_state import ATTEMPT_PATH, RELEASE_PATH, STATE_PATH, PodState
from trainyard.resource.job import TrainingJob
from trainyard_operator.controller.http import read_text

log = logging.getLogger(__name__)

_MAX_PARALLEL_CALLS = 100
_TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)
_MAX_RESPONSE_BYTES = 65_536
"""Bytes of a response that are read: it comes from a user's container, so its size is not trusted."""


def job_token(key: bytes, job: TrainingJob) -> str:
    """Return the token of a job: an HMAC-SHA256 of its UID under the operator's key, so it need not be stored."""
    return hmac.new(key, job.metadata.uid.encode(), hashlib.sha256).hexdigest()


async def get_launcher_states(urls: Sequence[str | None], token: str) -> list[PodState | None]:
    """Return the state of each launcher; None for one that does not answer, or has no URL yet."""
    return await _call_all("GET", [url and url + STATE_PATH for url in urls], token)


async def start_attempt(urls: Sequence[str | None], token: str, attempt: int) -> list[PodState | None]:
    """Request from launchers that they start an attempt; return their states, None after a rejection or no answer."""
    return await _call_all("POST", [url and f"{url}{ATTEMPT_PATH}{attempt}" for url in urls], token)


async def release(urls: Sequence[str | None], token: str) -> list[PodState | None]:
    """Request from launchers that they exit; return their states, None after a rejection or no answer."""
    return await _call_all("POST", [url and url + RELEASE_PATH for url in urls], token)


async def _call_all(method: str, urls: Sequence[str | None], token: str) -> list[PodState | None]:
    """Send one request to each URL, in parallel, and return the parsed responses in order."""
    slots = asyncio.Semaphore(_MAX_PARALLEL_CALLS)
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers={"Authorization": f"Bearer {token}"}) as session:

        async def call(url: str | None) -> PodState | None:
            if not url:
                return None
            async with slots:
                return await _call(session, method, url)

        return list(await asyncio.gather(*(call(url) for url in urls)))


async def _call(session: aiohttp.ClientSession, method: str, url: str) -> PodState | None:
    """Send one request; return the parsed response, None after any error."""
    try:
        async with session.request(method, url, allow_redirects=False) as response:
            text = await read_text(response, _MAX_RESPONSE_BYTES)
            if response.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
                log.info("%s %s: HTTP %d %s", method, url, response.status, text[:200].strip())
                return None
        return PodState.model_validate_json(text)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.debug("%s %s: %s", method, url, error)
        return None
