"""Requests to the launchers in pods (`trainyard.protocol.launcher_state`), shared by all backends."""

import hashlib
import hmac
import logging
from http import HTTPStatus

import aiohttp
from yarl import URL

from trainyard.protocol.launcher_state import ATTEMPT_PATH, RELEASE_PATH, STATE_PATH, PodState
from trainyard.resource.job import TrainingJob
from trainyard.time import utc_now
from trainyard_operator.controller.http import pod_session, read_text
from trainyard_operator.pod_input.launcher_answer import MAX_ANSWER_BYTES, parse_launcher_answer
from trainyard_operator.pod_input.text import clean_text

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=3, connect=1)


def job_token(key: bytes, job: TrainingJob) -> str:
    """Return the token of a job: an HMAC-SHA256 of its UID under the operator's key, so it need not be stored."""
    return hmac.new(key, job.metadata.uid.encode(), hashlib.sha256).hexdigest()


async def get_state(url: URL | None, token: str, job: TrainingJob) -> PodState | None:
    """Return the state of a launcher; None if it does not answer, or has no URL yet."""
    return await _call("GET", url, STATE_PATH, token, job)


async def start_attempt(url: URL | None, token: str, job: TrainingJob, attempt: int) -> PodState | None:
    """Request from a launcher that it starts an attempt; return its state, None after a rejection or no answer."""
    return await _call("POST", url, f"{ATTEMPT_PATH}{attempt}", token, job)


async def release(url: URL | None, token: str, job: TrainingJob) -> PodState | None:
    """Request from a launcher that it exits; return its state, None after a rejection or no answer."""
    return await _call("POST", url, RELEASE_PATH, token, job)


async def _call(method: str, base: URL | None, path: str, token: str, job: TrainingJob) -> PodState | None:
    """Send one request; return the parsed response, None after any error."""
    if base is None:
        return None
    url = base.with_path(path)
    try:
        async with (
            pod_session(_TIMEOUT) as session,
            session.request(
                method, url, allow_redirects=False, headers={"Authorization": f"Bearer {token}"}
            ) as response,
        ):
            text = await read_text(response, MAX_ANSWER_BYTES)
            if response.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
                log.info("%s %s: HTTP %d %s", method, url, response.status, clean_text(text, 200))
                return None
        return parse_launcher_answer(text, attempt=job.status.attempt, now=utc_now())
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        log.debug("%s %s: %s", method, url, error)
        return None
