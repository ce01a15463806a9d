"""Progress of running jobs, pulled from rank 0's metrics page. Workers hold no credentials and push nothing."""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from trainyard.protocol import constants
from trainyard.protocol.progress import Progress
from trainyard.resource.status import ConditionType
from trainyard_operator.controller.backend import Backend
from trainyard_operator.controller.cache import Cache, Entry, Key
from trainyard_operator.controller.http import read_text
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.lifecycle.observation import Pod, WorkerState

log = logging.getLogger(__name__)

_PULLS_AT_A_TIME = 50
_PATIENCE = aiohttp.ClientTimeout(total=5)
_LONGEST_PAGE = 1_000_000
"""Bytes; a page is written by a user's container, which may write anything."""
_FIGURES = {
    constants.METRIC_ATTEMPT: "attempt",
    constants.METRIC_STEP: "step",
    constants.METRIC_TOTAL_STEPS: "total_steps",
    constants.METRIC_RESUMED_STEP: "resumed_step",
    constants.METRIC_CHECKPOINT_STEP: "checkpoint_step",
    constants.METRIC_CHECKPOINT_DAMAGED: "checkpoints_damaged",
    constants.METRIC_CHECKPOINT_FAILURES: "checkpoint_failures",
    constants.METRIC_LOSS: "loss",
    constants.METRIC_LEARNING_RATE: "learning_rate",
    constants.METRIC_GRAD_NORM: "grad_norm",
    constants.METRIC_TOKENS_PER_SECOND: "tokens_per_second",
    constants.METRIC_SAMPLES_PER_SECOND: "samples_per_second",
    constants.METRIC_MFU: "mfu",
    constants.METRIC_CHECKPOINT_STALL: "checkpoint_stall_seconds",
    constants.METRIC_SKIPPED: "skipped_steps",
    constants.METRIC_SKIPPED_STEP: "last_skipped_step",
    constants.METRIC_ROLLBACKS: "rollbacks",
}
_MISHAPS = ("checkpoints_damaged", "checkpoint_failures", "skipped_steps", "last_skipped_step", "rollbacks")
"""Counts that are left out of the status while they are 0."""
_COUNTS = ("straggler_rank", "attempt", "step", "total_steps", "resumed_step", "checkpoint_step", *_MISHAPS)


def parse_progress(page: str, *, attempt: int, now: datetime) -> Progress | None:
    """Progress from a page in the Prometheus text format; None if it counts no steps. Before the first step it is 0.

    `attempt`: the one that the page is taken to be of, if it does not say so itself.

    Raises:
        ValueError: the page is not in that format.
    """
    values: dict[str, float] = {}
    evaluation: dict[str, float] = {}
    tokens = 0.0
    for sample in _samples(page):
        if sample.name in _FIGURES and math.isfinite(sample.value):
            values[_FIGURES[sample.name]] = sample.value
        elif sample.name.startswith(constants.METRIC_EVALUATION) and math.isfinite(sample.value):
            evaluation[sample.name.removeprefix(constants.METRIC_EVALUATION)] = significant(sample.value)
        elif sample.name == constants.METRIC_TOKENS:
            tokens = sample.value
        elif sample.name == constants.METRIC_STRAGGLER and sample.value > values.get("straggler_ratio", 0.0):
            values |= {"straggler_ratio": sample.value, "straggler_rank": float(sample.labels.get("rank", 0))}
    if "step" not in values:
        return None
    seen = {k: v for k, v in values.items() if v or k not in _MISHAPS}
    figures = {k: int(v) if k in _COUNTS else significant(v) for k, v in seen.items()}
    eta = None
    if values["step"] and (speed := values.get("tokens_per_second")) and "total_steps" in values:
        left = max(0.0, values["total_steps"] - values["step"])
        eta = significant(left * tokens / values["step"] / speed, 3)
    return Progress(
        **{"attempt": attempt, **figures},
        eval_loss=evaluation.get("loss"),
        metrics=dict(sorted(evaluation.items())) or None,
        eta_seconds=eta,
        updated_at=now.replace(microsecond=0),
    )


def _samples(page: str) -> list[Sample]:
    try:
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except IndexError as error:  # the parser's answer to some broken lines
        raise ValueError(f"not in the Prometheus text format: {error}") from error


def significant(value: float, digits: int = 6) -> float:
    """The value to some significant digits: what a person reads, and no more than fp32 holds."""
    return float(f"{value:.{digits}g}")


@dataclass(slots=True)
class ProgressPoller:
    """Pulls the progress of every running job each `interval` seconds, spread over the interval."""

    cache: Cache
    queue: WorkQueue[Key]
    backend: Backend
    clock: Callable[[], datetime]
    interval: float = 5.0

    async def run(self) -> None:
        """Poll until cancelled."""
        slots = asyncio.Semaphore(_PULLS_AT_A_TIME)
        async with aiohttp.ClientSession(timeout=_PATIENCE) as session:
            while True:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(self.interval))
                    for key, entry in self.cache.jobs():
                        if (pod := rank_zero(entry)) is not None:
                            group.create_task(self._pull(session, slots, key, entry, pod))

    async def _pull(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, key: Key, entry: Entry, pod: Pod
    ) -> None:
        """One pull. A worker that does not answer is no error here: status.progress.updatedAt shows its age."""
        url = self.backend.metrics_url(pod)
        if url is None:
            return
        await asyncio.sleep(random.uniform(0, self.interval / 5))  # not all at once
        attempt = int(pod["metadata"]["labels"][constants.LABEL_ATTEMPT])
        try:
            async with slots, session.get(url, allow_redirects=False) as response:
                response.raise_for_status()
                progress = parse_progress(await read_text(response, _LONGEST_PAGE), attempt=attempt, now=self.clock())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.debug("%s/%s: no progress from %s: %s", *key, url, error)
            return
        if progress is not None and progress != entry.progress:
            entry.progress = progress
            self.queue.add(key)


def rank_zero(entry: Entry) -> Pod | None:
    """The running pod with index 0 of a running job whose workers serve metrics."""
    job = entry.job
    if job is None or job.spec.metrics_endpoint is None or not job.status.is_true(ConditionType.RUNNING):
        return None
    name = job.pod_name(job.status.pod_attempt, 0)
    worker = entry.workers.get(name)
    return entry.pods[name] if worker is not None and worker.state is WorkerState.RUNNING else None
