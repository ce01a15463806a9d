"""Figures for Prometheus and for the operator, which reads them into the job's status."""

import logging
import math
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, Summary, start_http_server

from trainyard import contract
from trainyard.config import RunConfig
from trainyard_trainer.report import StepReport

logger = logging.getLogger("trainyard")

_CHECKPOINT_STEP = "Step of the newest complete checkpoint."


class Metrics:
    """Metrics of one worker pod, kept by its first process.

    Figures of the whole job (steps, loss, throughput) come from rank 0 alone, so that summing over pods counts
    nothing twice; the other pods say when they last finished a step.
    """

    def __init__(self, config: RunConfig, rank: int, attempt: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._labels = (config.namespace, config.job)
        self._config = config
        self._gauges: dict[str, Gauge] = {}
        self._last_step = self._gauge(contract.METRIC_LAST_STEP, "Time at which the last optimizer step ended.")
        self._leads = rank == 0
        if self._leads:
            self._set(contract.METRIC_ATTEMPT, "Attempt that these figures are of.", attempt)
            self._declare_totals()

    def _declare_totals(self) -> None:
        self._steps = self._counter(contract.METRIC_STEP, "Optimizer steps done.")
        self._samples = self._counter(contract.METRIC_SAMPLES, "Samples trained on, over all ranks.")
        self._tokens = self._counter(contract.METRIC_TOKENS, "Tokens trained on, over all ranks.")
        self._duration = Summary(
            contract.METRIC_STEP_DURATION,
            "Wall time of the training loop on rank 0. Phase data: waiting for the batch; compute: all else. "
            "A GPU may lag behind by up to one report, so only the mean over several reports has a meaning.",
            (*contract.METRIC_LABELS, "phase"),
            registry=self.registry,
        )
        by_rank = (*contract.METRIC_LABELS, "rank")
        text = "Seconds that a rank takes for the same small computation, without any communication."
        self._ranks = Gauge(contract.METRIC_RANK_COMPUTE, text, by_rank, registry=self.registry)
        text = "Of a rank that is too slow: how many times as long as the median rank it takes for that."
        self._stragglers = Gauge(contract.METRIC_STRAGGLER, text, by_rank, registry=self.registry)
        self._stall = self._counter(contract.METRIC_CHECKPOINT_STALL, "Seconds that training waited for checkpoints.")
        self._save_failures = self._counter(
            contract.METRIC_CHECKPOINT_FAILURES, "Checkpoints that could not be written."
        )
        self._non_finite = self._counter(contract.METRIC_NON_FINITE, "Steps whose gradient had no finite norm.")
        self._skipped = self._counter(contract.METRIC_SKIPPED, "Steps that changed nothing, for their gradient.")
        self._rollbacks = self._counter(contract.METRIC_ROLLBACKS, "Returns to a checkpoint, for bad steps.")
        self._data = self._duration.labels(*self._labels, "data")
        self._compute = self._duration.labels(*self._labels, "compute")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, contract.METRIC_LABELS, registry=self.registry).labels(*self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, contract.METRIC_LABELS, registry=self.registry)
        return self._gauges[name]

    def _set(self, name: str, text: str, value: float) -> None:
        self._gauge(name, text).labels(*self._labels).set(value)

    def serve(self, port: int) -> None:
        """Answer scrapes on a port from now on. A port in use is worth a warning, not the run; 0 serves nothing."""
        if port == 0:
            return
        try:
            start_http_server(port, registry=self.registry)
        except OSError as error:
            logger.warning(
                "metrics are not served: port %d: %s; set %s to a free port, or to 0",
                port,
                error.strerror,
                contract.ENV_METRICS_PORT,
            )

    def resumed(self, step: int, damaged: int) -> None:
        """Say what was found on the volume: the step to go on from, and how many newer checkpoints are no use."""
        if self._leads and step:
            self._set(contract.METRIC_RESUMED_STEP, "Step of the checkpoint that this attempt continued from.", step)
            self._set(contract.METRIC_CHECKPOINT_STEP, _CHECKPOINT_STEP, step)
        if self._leads:
            self._set(contract.METRIC_CHECKPOINT_DAMAGED, "Checkpoints that were found to be damaged.", damaged)

    def begin(self, step: int, samples: int) -> None:
        """Count on from a checkpoint."""
        if self._leads:
            self._steps.inc(step)
            self._samples.inc(samples)
            self._tokens.inc(samples * self._config.tokens_per_sample)

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint is complete."""
        self._set(contract.METRIC_CHECKPOINT_STEP, _CHECKPOINT_STEP, step)
        self._set(contract.METRIC_CHECKPOINT_TIME, "Time at which the newest checkpoint was complete.", time.time())
        self._set(contract.METRIC_CHECKPOINT_DURATION, "Seconds that the newest checkpoint took to write.", seconds)

    def save_failed(self) -> None:
        """A checkpoint could not be written."""
        self._save_failures.inc()

    def stalled(self, seconds: float) -> None:
        """Training has waited for a checkpoint."""
        if self._leads:
            self._stall.inc(seconds)

    def plan(self, total_steps: int) -> None:
        """Say how many steps there will be."""
        if self._leads:
            self._set(contract.METRIC_TOTAL_STEPS, "Optimizer steps in all.", total_steps)

    def step(self, samples: int = 0, data_seconds: float = 0.0, seconds: float = 0.0) -> None:
        """Count one optimizer step. Only rank 0's figures are counted."""
        self._last_step.labels(*self._labels).set(time.time())
        if not self._leads:
            return
        self._steps.inc()
        self._samples.inc(samples)
        self._tokens.inc(samples * self._config.tokens_per_sample)
        self._data.observe(data_seconds)
        self._compute.observe(seconds - data_seconds)

    def skipped(self, step: int, norm: float) -> None:
        """A step has changed nothing."""
        if self._leads:
            self._skipped.inc()
            self._non_finite.inc(not math.isfinite(norm))
            self._set(contract.METRIC_SKIPPED_STEP, "The last step that has changed nothing.", step)

    def rolled_back(self, step: int) -> None:
        """The run is at an earlier step again; what it has drawn stays drawn."""
        if self._leads:
            self._rollbacks.inc()
            self._steps.reset()
            self._steps.inc(step)

    def evaluated(self, figures: dict[str, float]) -> None:
        """Show the figures of an evaluation."""
        for name, value in figures.items():
            self._set(
                f"{contract.METRIC_EVALUATION}{name}", f"Held-out samples, at the last evaluation: {name}.", value
            )

    def report(self, report: StepReport) -> None:
        """Show the figures of a report."""
        for name, text, value in (
            (contract.METRIC_LOSS, "Training loss at the last report, in nats per token.", report.loss),
            (contract.METRIC_LEARNING_RATE, "Learning rate at the last report.", report.learning_rate),
            (contract.METRIC_GRAD_NORM, "Norm of the gradient before clipping.", report.grad_norm),
            (contract.METRIC_TOKENS_PER_SECOND, "Tokens per second of all ranks.", report.tokens_per_second),
            (contract.METRIC_SAMPLES_PER_SECOND, "Samples per second of all ranks.", report.samples_per_second),
        ):
            self._set(name, text, value)
        for rank, seconds in enumerate(report.compute):
            self._ranks.labels(*self._labels, str(rank)).set(seconds)
        self._stragglers.clear()
        for rank, ratio in report.stragglers.items():
            self._stragglers.labels(*self._labels, str(rank)).set(ratio)
