"""The parts of the operator that run side by side: one that fails is restarted, and does not end the others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Final

from trainyard_operator.controller.backoff import doubled

log = logging.getLogger(__name__)

MAX_BACKOFF: Final = 60.0
"""Seconds until a part that fails again and again is restarted."""
_FIRST_BACKOFF = 1.0
_HEALTHY_AFTER = 300.0
"""Seconds after which the failures of a part before are forgotten."""


class Part(StrEnum):
    """Names of the parts, which are also values of a label."""

    WATCH = "watch"
    PODS = "pods"
    RECONCILE = "reconcile"
    PROGRESS = "progress"
    RESYNC = "resync"


async def run_parts(parts: Mapping[Part, Callable[[], Awaitable[object]]], on_failure: Callable[[Part], None]) -> None:
    """Run all parts until cancelled. `on_failure` is called each time that one of them has failed."""
    async with asyncio.TaskGroup() as group:
        for name, part in parts.items():
            group.create_task(_keep_running(name, part, on_failure))


async def _keep_running(name: Part, part: Callable[[], Awaitable[object]], on_failure: Callable[[Part], None]) -> None:
    """Run a part, and restart it with back-off whenever it fails, or ends although none of them ever should."""
    loop, failures = asyncio.get_running_loop(), 0
    while True:
        started = loop.time()
        try:
            await part()
            log.error("the part %s of the operator has ended; it is restarted", name)
        # A defect of this part. The others continue; only a lost lease ends the process.
        except Exception:
            log.exception("the part %s of the operator has failed; it is restarted", name)
        failures = 1 if loop.time() - started > _HEALTHY_AFTER else failures + 1
        on_failure(name)
        await asyncio.sleep(doubled(_FIRST_BACKOFF, failures, MAX_BACKOFF))
