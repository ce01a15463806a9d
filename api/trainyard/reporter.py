"""For a program of the user's own: the same metrics that the built-in trainer serves, so that status, dashboards and
alerts work for it, too.

    from trainyard.reporter import Reporter

    reporter = Reporter(total_steps=1000)
    for step in range(1000):
        ...
        reporter.step(tokens=batch * length, loss=loss)

with `spec.metrics: {}` in the TrainingJob. It needs prometheus-client (the extra "report", see
docs/install.md) and no torch.
"""

import os
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server

from trainyard import contract

WINDOW = 30.0
"""Seconds over which the throughput is taken."""


class Reporter:
    """Serves the metrics of one worker.

    Make one in each process, and call it from each: it is rank 0's that tells of the whole job, the first process of
    each pod serves the page, and all others do nothing. Figures are for the whole job, over all ranks.
    """

    def __init__(
        self, total_steps: int | None = None, *, resumed_step: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to serve.

        Args:
            total_steps: optimizer steps in all, if that is known; without it there is no time of arrival.
            resumed_step: step of the checkpoint that this attempt goes on from.
            clock: seconds, for tests.

        Raises:
            OSError: the port (spec.metrics.port) is in use.
        """
        env = os.environ.get
        self._clock = clock
        self._labels = (env(contract.ENV_NAMESPACE, "default"), env(contract.ENV_JOB, "job"))
        self._leads = env("RANK", "0") == "0"
        self._serves = env("LOCAL_RANK", "0") == "0"
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._recent: deque[tuple[float, int, int]] = deque([(clock(), 0, 0)])
        self._tokens_done = self._samples_done = 0
        if self._leads:
            self._declare(total_steps, resumed_step)
        if self._serves:
            ProcessCollector(registry=self.registry)
            port = int(env(contract.ENV_METRICS_PORT) or contract.METRICS_PORT)
            self._server, self._thread = start_http_server(port, registry=self.registry)

    def _declare(self, total_steps: int | None, resumed_step: int) -> None:
        self._steps = self._counter(contract.METRIC_STEP, "Optimizer steps done.")
        self._tokens = self._counter(contract.METRIC_TOKENS, "Tokens trained on, over all ranks.")
        self._samples = self._counter(contract.METRIC_SAMPLES, "Samples trained on, over all ranks.")
        attempt = int(os.environ.get(contract.ENV_ATTEMPT, "0"))
        self._set(contract.METRIC_ATTEMPT, "Attempt that these figures are of.", attempt)
        self._steps.inc(resumed_step)
        self._unknown_steps = resumed_step
        if total_steps is not None:
            self._set(contract.METRIC_TOTAL_STEPS, "Optimizer steps in all.", total_steps)
        if resumed_step:
            self._set(contract.METRIC_RESUMED_STEP, "Step of the checkpoint that was gone on from.", resumed_step)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, contract.METRIC_LABELS, registry=self.registry).labels(*self._labels)

    def _set(self, name: str, text: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, contract.METRIC_LABELS, registry=self.registry)
        self._gauges[name].labels(*self._labels).set(value)

    def step(
        self,
        *,
        tokens: int = 0,
        samples: int = 0,
        loss: float | None = None,
        learning_rate: float | None = None,
        grad_norm: float | None = None,
    ) -> None:
        """An optimizer step is done, on so many tokens or samples over all ranks; what is not known is left out."""
        if self._serves:
            self._set(contract.METRIC_LAST_STEP, "Time at which the last optimizer step ended.", time.time())
        if not self._leads:
            return
        # Of earlier attempts only the steps are known; theirs are taken to have been like the first one here.
        alike = 1 + self._unknown_steps
        self._unknown_steps = 0
        self._steps.inc()
        self._tokens.inc(tokens * alike)
        self._samples.inc(samples * alike)
        self._tokens_done += tokens
        self._samples_done += samples
        for name, text, value in (
            (contract.METRIC_LOSS, "Training loss.", loss),
            (contract.METRIC_LEARNING_RATE, "Learning rate.", learning_rate),
            (contract.METRIC_GRAD_NORM, "Norm of the gradient before clipping.", grad_norm),
        ):
            if value is not None:
                self._set(name, text, value)
        self._pace()

    def _pace(self) -> None:
        """Throughput since half a minute ago, or since the start."""
        now = self._clock()
        self._recent.append((now, self._tokens_done, self._samples_done))
        while len(self._recent) > 2 and now - self._recent[1][0] >= WINDOW:
            self._recent.popleft()
        then, tokens, samples = self._recent[0]
        if now <= then:
            return
        for name, text, done in (
            (contract.METRIC_TOKENS_PER_SECOND, "Tokens per second of all ranks.", self._tokens_done - tokens),
            (contract.METRIC_SAMPLES_PER_SECOND, "Samples per second of all ranks.", self._samples_done - samples),
        ):
            if done:
                self._set(name, text, done / (now - then))

    def evaluated(self, **figures: float) -> None:
        """Figures on held-out data: loss, accuracy, perplexity, ..."""
        if self._leads:
            for name, value in figures.items():
                self._set(f"{contract.METRIC_EVALUATION}{name}", f"Held-out samples: {name}.", value)

    def saved(self, step: int) -> None:
        """A checkpoint of a step is complete."""
        if self._leads:
            self._set(contract.METRIC_CHECKPOINT_STEP, "Step of the newest complete checkpoint.", step)
            self._set(contract.METRIC_CHECKPOINT_TIME, "Time at which it was complete.", time.time())

    def close(self) -> None:
        """Serve no more."""
        if self._serves:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
