"""The operator's own metrics and, from `job_metrics`, those of its jobs."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trainyard import __version__
from trainyard.time import utc_now
from trainyard_operator.controller.cache import Cache, Key
from trainyard_operator.controller.work_queue import WorkQueue
from trainyard_operator.kube.job_metrics import JobCollector
from trainyard_operator.parts import Part

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)


class OperatorMetrics:
    """The metrics registry of the operator with its instruments."""

    def __init__(self, cache: Cache, queue: WorkQueue[Key]) -> None:
        self.registry = CollectorRegistry()
        self.reconcile = Histogram(
            "trainyard_operator_reconcile_duration_seconds",
            "Duration of one reconciliation of one job, by outcome",
            ["outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "trainyard_operator_api_requests_total",
            "Requests to the API server, by verb and HTTP status (0: no response)",
            ["verb", "code"],
            registry=self.registry,
        )
        depth = Gauge("trainyard_operator_queue_depth", "Jobs waiting to be reconciled", registry=self.registry)
        depth.set_function(lambda: len(queue))
        stalled = Gauge(
            "trainyard_operator_queue_stalled_seconds",
            "How long no queued job has been reconciled, or no request got a response of the API server",
            registry=self.registry,
        )
        stalled.set_function(lambda: max(queue.stalled_seconds(), self._unanswered_seconds()))
        info = Gauge(
            "trainyard_operator_info", "Version of the operator; always 1", ["version"], registry=self.registry
        )
        info.labels(__version__).set(1)
        self._unanswered_since: float | None = None
        """Time of the event loop when a request first got no response; None if one got a response since."""
        self.leader = Gauge(
            "trainyard_operator_leader",
            "1 while this operator is the leader, 0 while it is a standby replica",
            registry=self.registry,
        )
        self.failures = Counter(
            "trainyard_operator_part_failures_total",
            "Failures of a part of the operator, after each of which the part was restarted",
            ["part"],
            registry=self.registry,
        )
        for part in Part:  # from 0, so that the first failure is an increase
            self.failures.labels(part)
        self.registry.register(JobCollector(cache, utc_now))

    def count_failure(self, part: Part) -> None:
        """Count a failure of a part of the operator."""
        self.failures.labels(part).inc()

    def count_request(self, verb: str, code: int) -> None:
        """Count one response of the API server; code 0: there was none."""
        self.requests.labels(verb, str(code)).inc()
        if 0 < code < 500:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = asyncio.get_running_loop().time()

    def _unanswered_seconds(self) -> float:
        """Return the seconds since requests get no response: the queue does not see that as a stall."""
        return 0.0 if self._unanswered_since is None else asyncio.get_running_loop().time() - self._unanswered_since

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Report this operator as the leader while the context lasts."""
        self.leader.set(1)
        try:
            yield
        finally:
            self.leader.set(0)

    def observe_reconcile(self, seconds: float, outcome: str) -> None:
        """Record the duration and outcome of one reconciliation."""
        self.reconcile.labels(outcome).observe(seconds)
