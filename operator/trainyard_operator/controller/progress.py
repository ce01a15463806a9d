"""Progress of running jobs, read from the metrics page of rank 0. Workers hold no credentials and push nothing."""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from trainyard.protocol import constants, worker_metrics
from trainyard.protocol.progress import Progress, progress_fields
from trainyard.resource.status import ConditionType
from trainyard_operator.controller.backend import Backend
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.http import read_text
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod, WorkerState

log = logging.getLogger(__name__)

_MAX_CONCURRENT_REQUESTS = 50
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_MAX_PAGE_BYTES = 1_000_000
"""Longer pages are refused: a user's container writes them, with any content."""


def parse_progress(page: str, *, attempt: int, now: datetime) -> Progress | None:
    """Return the progress that a page in the Prometheus text format shows; None if the page does not count steps.

    Before the first step the step is 0.

    Args:
        page: content of the metrics page of rank 0.
        attempt: attempt of the pod, for a page that does not name its attempt.
        now: time at which the page was read.

    Raises:
        ValueError: the page is not in that format, or its values do not fit into the status.
    """
    values, families, tokens = _read_values(page)
    if "step" not in values:
        return None
    fields: dict[str, Any] = {"attempt": attempt}
    fields |= progress_fields(values, lambda _, value: significant(value))
    fields |= {field: dict(sorted(members.items())) or None for field, members in families.items()}
    eta = None
    # The remaining steps take as many tokens each as the steps so far, at the current throughput.
    if values["step"] and tokens is not None and (speed := values.get("tokens_per_second")) and "total_steps" in values:
        remaining_steps = max(0.0, values["total_steps"] - values["step"])
        eta = significant(remaining_steps * tokens / values["step"] / speed, 3)
    return Progress(
        **fields,
        eval_loss=families["metrics"].get("loss"),
        eta_seconds=eta,
        updated_at=now.replace(microsecond=0),
    )


def _read_values(page: str) -> tuple[dict[str, float], dict[str, dict[str, float]], float | None]:
    """Return the finite values on a page.

    Returns:
        Values by field of status.progress, the members of each open-ended family by field and name, and the count of
        tokens, if the page has it.
    """
    fields = {m.name: m.field for m in worker_metrics.METRICS if m.field is not None and not m.open_ended}
    rank_fields = {m.name: m.rank_field for m in worker_metrics.METRICS if m.rank_field is not None}
    families = {m.name: m.field for m in worker_metrics.METRICS if m.field is not None and m.open_ended}
    values: dict[str, float] = {}
    members: dict[str, dict[str, float]] = {field: {} for field in families.values()}
    tokens: float | None = None
    for sample in _samples(page):
        field, rank_field = fields.get(sample.name), rank_fields.get(sample.name)
        # JSON has neither NaN nor Inf.
        if not math.isfinite(sample.value):
            continue
        if sample.name == worker_metrics.TOKENS.name:
            tokens = sample.value
        elif field is None:
            for prefix, family in families.items():
                if sample.name.startswith(prefix):
                    members[family][sample.name.removeprefix(prefix)] = significant(sample.value)
        elif rank_field is None:
            values[field] = sample.value
        # Of a metric by rank, the status holds the largest value and its rank.
        elif sample.value > values.get(field, 0.0):
            values |= {field: sample.value, rank_field: float(sample.labels.get("rank", 0))}
    return values, members, tokens


def _samples(page: str) -> list[Sample]:
    try:
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except IndexError as error:  # what the parser raises for some malformed lines
        raise ValueError(f"not in the Prometheus text format: {error}") from error


def significant(value: float, digits: int = 6) -> float:
    """Return the value rounded to some significant digits; 6 are readable, and about what float32 holds."""
    return float(f"{value:.{digits}g}")


@dataclass(slots=True)
class ProgressPoller:
    """Reads the progress of every running job each `interval` seconds."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    clock: Callable[[], datetime]
    interval: float = 5.0

    async def run(self) -> None:
        """Poll until cancelled."""
        slots = asyncio.Semaphore(_MAX_CONCURRENT_REQUESTS)
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(self.interval))
                    for key, entry in self.cache.jobs():
                        if (pod := rank_zero(entry)) is not None:
                            group.create_task(self._read(session, slots, key, entry, pod))

    async def _read(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, key: Key, entry: Entry, pod: Pod
    ) -> None:
        """Read the page of one job once, and queue the job if its progress has changed.

        An unanswered request is not an error: status.progress.updatedAt shows how old the values are.
        """
        url = self.backend.metrics_url(pod)
        if url is None:
            return
        await asyncio.sleep(random.uniform(0, self.interval / 5))  # spread the requests
        attempt = int(pod["metadata"]["labels"][constants.LABEL_ATTEMPT])
        try:
            async with slots, session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                progress = parse_progress(await read_text(response, _MAX_PAGE_BYTES), attempt=attempt, now=self.clock())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.debug("%s/%s: no progress from %s: %s", *key, url, error)
            return
        if progress is not None and progress != entry.progress:
            entry.progress = progress
            self.queue.add(key)


def rank_zero(entry: Entry) -> Pod | None:
    """Return the running pod with index 0 of a running job whose workers serve metrics; None without such a pod."""
    job = entry.job
    if job is None or job.spec.metrics_endpoint is None or not job.status.is_true(ConditionType.RUNNING):
        return None
    name = job.pod_name(job.status.pod_attempt, 0)
    worker = entry.workers.get(name)
    return entry.pods[name] if worker is not None and worker.state is WorkerState.RUNNING else None
