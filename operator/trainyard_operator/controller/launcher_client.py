"""Calls to the launchers in pods, the same in every world (`trainyard.protocol.launcher_state`)."""

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

_CALLS_AT_A_TIME = 100
_PATIENCE = aiohttp.ClientTimeout(total=5, connect=2)
_LONGEST_ANSWER = 65_536
"""Bytes; an answer comes from a user's container, which may say anything."""


def job_token(key: bytes, job: TrainingJob) -> str:
    """A job's token: it follows from the operator's key, so nothing needs to be kept, or read back."""
    return hmac.new(key, job.metadata.uid.encode(), hashlib.sha256).hexdigest()


async def ask(urls: Sequence[str | None], token: str) -> list[PodState | None]:
    """What each launcher says of itself; None for one that does not answer."""
    return await _call_all("GET", [url and url + STATE_PATH for url in urls], token)


async def order(urls: Sequence[str | None], token: str, attempt: int | None) -> list[PodState | None]:
    """Tell launchers to start an attempt, or (None) to end; None for one that does not follow."""
    path = RELEASE_PATH if attempt is None else f"{ATTEMPT_PATH}{attempt}"
    return await _call_all("POST", [url and url + path for url in urls], token)


async def _call_all(method: str, urls: Sequence[str | None], token: str) -> list[PodState | None]:
    slots = asyncio.Semaphore(_CALLS_AT_A_TIME)
    async with aiohttp.ClientSession(timeout=_PATIENCE, headers={"Authorization": f"Bearer {token}"}) as session:

        async def call(url: str | None) -> PodState | None:
            if not url:
                return None
            async with slots:
                return await _call(session, method, url)

        return list(await asyncio.gather(*(call(url) for url in urls)))


async def _call(session: aiohttp.ClientSession, method: str, url: str) -> PodState | None:
    try:
        async with session.request(method, url, allow_redirects=False) as response:
            text = await read_text(response, _LONGEST_ANSWER)
            if response.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
                log.info("%s %s: HTTP %d %s", method, url, response.status, text[:200].strip())
                return None
        return PodState.model_validate_json(text)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.debug("%s %s: %s", method, url, error)
        return None
