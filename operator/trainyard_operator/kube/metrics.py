"""The operator's own metrics, and one set of series for each job that exists.

The series of jobs are computed from the cache at each scrape, so those of a deleted job are gone with it.
"""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from trainyard.contract import METRIC_LABELS
from trainyard.status import ConditionType
from trainyard_operator.core.cache import Cache, Key
from trainyard_operator.core.observe import WorkerState
from trainyard_operator.core.queue import WorkQueue

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)


class OperatorMetrics:
    """Registry of the operator, and the instruments that its parts write to."""

    def __init__(self, cache: Cache, queue: WorkQueue[Key]) -> None:
        self.registry = CollectorRegistry()
        self.reconcile = Histogram(
            "trainyard_operator_reconcile_duration_seconds",
            "Time of one look at one job, by outcome",
            ["outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "trainyard_operator_api_requests_total",
            "Requests to the API server, by verb and HTTP status (0: no answer)",
            ["verb", "code"],
            registry=self.registry,
        )
        depth = Gauge("trainyard_operator_queue_depth", "Jobs waiting for a look", registry=self.registry)
        depth.set_function(lambda: len(queue))
        stalled = Gauge(
            "trainyard_operator_queue_stalled_seconds",
            "How long work has been waiting without any being finished",
            registry=self.registry,
        )
        stalled.set_function(queue.stalled_seconds)
        self.registry.register(_JobCollector(cache))

    def count_request(self, verb: str, code: int) -> None:
        """Count one answer of the API server."""
        self.requests.labels(verb, str(code)).inc()

    def observe_reconcile(self, seconds: float, outcome: str) -> None:
        """Note one look at one job."""
        self.reconcile.labels(outcome).observe(seconds)


class _JobCollector(Collector):
    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        labels = list(METRIC_LABELS)
        conditions = GaugeMetricFamily(
            "trainyard_job_condition",
            "1 while the condition of the job holds, else 0",
            labels=[*labels, "condition"],
        )
        pods = GaugeMetricFamily("trainyard_job_pods", "Pods of the job, by state", labels=[*labels, "state"])
        restarts = CounterMetricFamily(
            "trainyard_job_restarts",
            "Attempts that had to be repeated, by whether they count",
            labels=[*labels, "counted"],
        )
        goodput = CounterMetricFamily(
            "trainyard_job_goodput_seconds",
            "Wall time of the job, by what it went into, as of the last change of its status",
            labels=[*labels, "part"],
        )
        for key, entry in self._cache.jobs():
            if entry.job is None:
                continue
            status = entry.job.status
            for kind in ConditionType:
                conditions.add_metric([*key, kind], float(status.is_true(kind)))
            tally = Tally(worker.state for worker in entry.workers.values() if not worker.placeholder)
            for state in WorkerState:
                pods.add_metric([*key, state], tally[state])
            restarts.add_metric([*key, "true"], status.restarts_counted)
            restarts.add_metric([*key, "false"], status.restarts - status.restarts_counted)
            for part, seconds in status.goodput.parts().items() if status.goodput else ():
                goodput.add_metric([*key, part], seconds)
        return conditions, pods, restarts, goodput
