"""The operator's own metrics, and those of its jobs (`job_metrics`)."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trainyard import __version__
from trainyard_operator.core.cache import Cache, Key
from trainyard_operator.core.queue import WorkQueue
from trainyard_operator.core.reconcile import utc_now
from trainyard_operator.kube.job_metrics import JobCollector

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
            "How long work has been waiting without any being finished, or without an answer of the API server",
            registry=self.registry,
        )
        stalled.set_function(lambda: max(queue.stalled_seconds(), self._silent_seconds()))
        info = Gauge("trainyard_operator_info", "What runs; always 1", ["version"], registry=self.registry)
        info.labels(__version__).set(1)
        self._silent_since: float | None = None
        """When a request first had no answer (time of the event loop), if none has had one since."""
        self.leader = Gauge(
            "trainyard_operator_leader", "1 while this operator works, 0 while it stands by", registry=self.registry
        )
        self.registry.register(JobCollector(cache, utc_now))

    def count_request(self, verb: str, code: int) -> None:
        """Count one answer of the API server, or (code 0) that none came."""
        self.requests.labels(verb, str(code)).inc()
        if 0 < code < 500:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = asyncio.get_running_loop().time()

    def _silent_seconds(self) -> float:
        """A look that ends for want of an answer is finished for the queue, but nothing is done."""
        return 0.0 if self._silent_since is None else asyncio.get_running_loop().time() - self._silent_since

    @contextmanager
    def leading(self) -> Iterator[None]:
        """This operator is the one that works, for the time of the context."""
        self.leader.set(1)
        try:
            yield
        finally:
            self.leader.set(0)

    def observe_reconcile(self, seconds: float, outcome: str) -> None:
        """Note one look at one job."""
        self.reconcile.labels(outcome).observe(seconds)
