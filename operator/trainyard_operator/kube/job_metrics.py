"""Metrics of jobs, computed from the cache at each scrape, so that the series of a deleted job disappear."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from trainyard.protocol.constants import METRIC_LABELS
from trainyard.resource.job import TrainingJob
from trainyard.resource.status import SUMMARY_CONDITIONS, ConditionType, Phase
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.entry import Entry
from trainyard_operator.lifecycle.observation import WorkerState

SUCCEEDED_KEPT = timedelta(hours=2)
"""How long a job that has succeeded has series: longer than alerts remember the last step of a worker."""
FAILED_KEPT = timedelta(hours=25)
"""How long a job that has failed has series: longer than its alert fires."""

_LABELS = list(METRIC_LABELS)
_CONDITIONS = [kind for kind in ConditionType if kind not in SUMMARY_CONDITIONS]


class JobCollector(Collector):
    """Collects the series of all jobs, in the thread of the event loop, which is the only one to change the cache."""

    def __init__(self, cache: Cache, clock: Callable[[], datetime]) -> None:
        self._cache = cache
        self._clock = clock

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Return all series of all jobs, except of those that finished long ago."""
        series, now = _Series(), self._clock()
        phases: Tally[str] = Tally()
        for key, entry in self._cache.jobs():
            if entry.job is not None and not entry.job.managed_elsewhere:
                if _has_series(entry.job, now):
                    series.add(key, entry, entry.job, now)
                phases[entry.job.status.phase or Phase.PENDING] += 1
        count = GaugeMetricFamily("trainyard_operator_jobs", "Jobs by phase", labels=["phase"])
        for phase in Phase:
            count.add_metric([phase], phases[phase])
        return [count, *vars(series).values()]


class _Series:
    """The metric families, one per attribute."""

    def __init__(self) -> None:
        self.conditions = GaugeMetricFamily(
            "trainyard_job_condition",
            "1 while the condition of the job holds, else 0",
            labels=[*_LABELS, "condition"],
        )
        self.pods = GaugeMetricFamily("trainyard_job_pods", "Pods of the job, by state", labels=[*_LABELS, "state"])
        self.desired = GaugeMetricFamily(
            "trainyard_job_workers_desired", "Workers that the current attempt needs", labels=_LABELS
        )
        self.attempt = GaugeMetricFamily("trainyard_job_attempt", "Number of the current attempt", labels=_LABELS)
        self.pending = GaugeMetricFamily(
            "trainyard_job_pending_seconds",
            "How long the job has been waiting for all of its workers to run; 0 while they do",
            labels=_LABELS,
        )
        self.restarts = CounterMetricFamily(
            "trainyard_job_restarts",
            "Restarts of the job, by whether they count against restartPolicy.maxRestarts",
            labels=[*_LABELS, "counted"],
        )
        self.failed_at = GaugeMetricFamily(
            "trainyard_job_last_failure_timestamp_seconds",
            "When an attempt of the job last ended early, and why",
            labels=[*_LABELS, "reason"],
        )
        self.goodput = CounterMetricFamily(
            "trainyard_job_goodput_seconds",
            "Wall time of the job by what it was spent on, as of the last change of its status",
            labels=[*_LABELS, "part"],
        )

    def add(self, key: Key, entry: Entry, job: TrainingJob, now: datetime) -> None:
        """Add the series of one job."""
        status = job.status
        for kind in _CONDITIONS:
            self.conditions.add_metric([*key, kind], float(status.is_true(kind)))
        tally = Tally(worker.state for worker in entry.workers.values() if not worker.is_placeholder)
        for state in WorkerState:
            self.pods.add_metric([*key, state], tally[state])
        self.desired.add_metric(key, status.workers.desired)
        self.attempt.add_metric(key, status.attempt)
        self.pending.add_metric(key, _pending_seconds(job, now))
        self.restarts.add_metric([*key, "true"], status.restarts_counted)
        self.restarts.add_metric([*key, "false"], status.restarts - status.restarts_counted)
        if status.last_failure is not None:
            self.failed_at.add_metric([*key, status.last_failure.reason], status.last_failure.at.timestamp())
        for part, seconds in status.goodput.parts().items() if status.goodput else ():
            self.goodput.add_metric([*key, part], seconds)


def _has_series(job: TrainingJob, now: datetime) -> bool:
    """Return whether a job has series: finished jobs may stay in the cluster for ever, and their series may not."""
    end = job.status.completion_time
    if not job.status.finished or end is None:
        return True
    return now - end < (SUCCEEDED_KEPT if job.status.is_true(ConditionType.SUCCEEDED) else FAILED_KEPT)


def _pending_seconds(job: TrainingJob, now: datetime) -> float:
    """Return how long a job has been waiting to run; 0 if it runs, is suspended, or has finished."""
    status = job.status
    if status.finished or status.is_true(ConditionType.RUNNING) or job.spec.suspend:
        return 0.0
    since = [c.last_transition_time for kind in _MARKS if (c := status.condition(kind)) is not None]
    return max(0.0, (now - max(since)).total_seconds()) if since else 0.0


_MARKS = (ConditionType.CREATED, ConditionType.RUNNING, ConditionType.SUSPENDED)
"""Conditions whose last change started the wait: accepted, not running any more, resumed."""
