"""The metrics page of one worker, in the Prometheus text format. It needs the package prometheus-client."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from trainyard.protocol import worker_metrics
from trainyard.protocol.constants import METRIC_LABELS
from trainyard.protocol.worker_metrics import WorkerMetric


class MetricsPage:
    """Values of `WorkerMetric`s. A metric appears on the page with its first value."""

    def __init__(self, namespace: str, job: str) -> None:
        self.registry = CollectorRegistry()
        self._job = (namespace, job)
        self._families: dict[str, Gauge | Counter] = {}
        self._children: dict[tuple[str, ...], Gauge | Counter] = {}
        self._values: dict[str, float] = {}

    def set(self, metric: WorkerMetric, value: float, *labels: str) -> None:
        """Set a gauge; `labels` are the values of the metric's own labels."""
        gauge = self._child(metric, labels)
        assert isinstance(gauge, Gauge)
        gauge.set(value)
        if not labels:
            self._values[metric.name] = value

    def add(self, metric: WorkerMetric, amount: float = 1) -> None:
        """Increase a counter; with 0 it only appears on the page."""
        counter = self._child(metric, ())
        assert isinstance(counter, Counter)
        counter.inc(amount)
        self._values[metric.name] = self._values.get(metric.name, 0) + amount

    def restart(self, metric: WorkerMetric, value: float) -> None:
        """Let a counter continue from a lower value, as after a rollback."""
        counter = self._child(metric, ())
        assert isinstance(counter, Counter)
        counter.reset()
        counter.inc(value)
        self._values[metric.name] = value

    def clear(self, metric: WorkerMetric) -> None:
        """Remove all label values of a metric."""
        self._family(metric).clear()
        self._children = {key: child for key, child in self._children.items() if key[0] != metric.name}

    def progress(self) -> dict[str, float]:
        """Return the values of metrics without labels that status.progress holds, by field."""
        return {
            metric.field: self._values[metric.name]
            for metric in worker_metrics.METRICS
            if metric.field is not None and metric.name in self._values
        }

    def _child(self, metric: WorkerMetric, labels: tuple[str, ...]) -> Gauge | Counter:
        key = (metric.name, *labels)
        if key not in self._children:
            self._children[key] = self._family(metric).labels(*self._job, *labels)
        return self._children[key]

    def _family(self, metric: WorkerMetric) -> Gauge | Counter:
        if metric.name not in self._families:
            kind = {"gauge": Gauge, "counter": Counter}[metric.kind]
            names = (*METRIC_LABELS, *metric.labels)
            self._families[metric.name] = kind(metric.name, metric.help, names, registry=self.registry)
        return self._families[metric.name]
