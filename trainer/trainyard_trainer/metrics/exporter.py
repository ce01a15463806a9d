"""The metrics page of one pod, for Prometheus and for the operator, which reads it into status.progress."""

import logging
import math
import time
from collections.abc import Iterable, Mapping

from prometheus_client import ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from trainyard import __version__
from trainyard.config import RunConfig
from trainyard.net import any_address
from trainyard.protocol import constants, worker_metrics
from trainyard.protocol.metrics_page import MetricsPage
from trainyard.protocol.progress import progress_fields
from trainyard.sizing.model_size import flops_per_token
from trainyard_trainer.metrics.memory_stats import Memory, measure
from trainyard_trainer.metrics.observer import Observer, Start
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.metrics.stopwatch import PHASES
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.world import World

logger = logging.getLogger("trainyard")


class MetricsExporter(Observer):
    """Metrics of one worker pod, kept by its first process.

    Metrics of the whole job (steps, loss, throughput) come from rank 0 alone, so that a sum over pods counts nothing
    twice. Every pod reports when it last finished a step and how much memory its ranks use.
    """

    def __init__(self, config: RunConfig, world: World, attempt: int) -> None:
        self.page = MetricsPage(config.namespace, config.job)
        self.registry = self.page.registry
        ProcessCollector(registry=self.registry)
        self.registry.register(_RankMemory(config, world))
        self._config = config
        self._flops_per_token = flops_per_token(config)
        self._samples_per_epoch = 0
        """Samples to train on; 0 until the training begins."""
        self._samples_per_step = 0
        self._samples_consumed = 0
        """Samples that the run has trained on, including earlier attempts."""
        self._reported_fields: frozenset[str] = frozenset()
        """Fields of status.progress that the last report had values for."""
        self._durations = _StepDurations(config)
        self._is_rank_0 = world.rank == 0
        if self._is_rank_0:
            self._declare(world, attempt)

    def _declare(self, world: World, attempt: int) -> None:
        """Show the metrics of rank 0 that have a value from the start: what runs, and counters at 0."""
        info = {
            "version": __version__,
            "model": self._config.model.name,
            "mesh": str(self._config.mesh),
            "device": world.device.type,
            "world_size": str(world.size),
        }
        self.page.set(worker_metrics.RUN_INFO, 1, *(info[label] for label in worker_metrics.RUN_INFO.labels))
        self.page.set(worker_metrics.ATTEMPT, attempt)
        self.registry.register(self._durations)
        for metric in worker_metrics.METRICS:
            if metric.kind == "counter":
                self.page.add(metric, 0)

    def serve(self, port: int) -> None:
        """Serve the page on a port; 0: do not serve it. A port in use is worth a warning, but does not end the run."""
        if port == 0:
            return
        try:
            start_http_server(port, any_address(), self.registry)
        except OSError as error:
            logger.warning(
                "metrics are not served: port %d: %s; set %s to a free port, or to 0",
                port,
                error.strerror,
                constants.ENV_METRICS_PORT,
            )

    def attempt_progress(self) -> dict[str, float]:
        """Return the fields of status.progress that are not part of a report: checkpoints, skipped steps, rollbacks."""
        fields = progress_fields(self.page.progress())
        return {name: value for name, value in fields.items() if name not in self._reported_fields}

    def checkpoint_resumed(self, step: int, damaged: int) -> None:
        """Show the checkpoint that this attempt resumes from (0: none), and how many newer ones are damaged."""
        if self._is_rank_0 and step:
            self.page.set(worker_metrics.RESUMED_STEP, step)
            self.page.set(worker_metrics.CHECKPOINT_STEP, step)
        if self._is_rank_0:
            self.page.set(worker_metrics.CHECKPOINTS_DAMAGED, damaged)

    def prepared(self, share: float, seconds: float) -> None:
        """Show how much of the data is prepared, and how long that has taken up to the last progress."""
        if self._is_rank_0:
            self.page.set(worker_metrics.DATA_PREPARED, share)
            self.page.set(worker_metrics.DATA_PREPARATION, seconds)

    def begin(self, start: Start) -> None:
        """Show the planned steps, and continue the counters of earlier attempts."""
        if self._is_rank_0:
            self._samples_per_epoch, self._samples_per_step = start.samples, start.batch
            self.page.set(worker_metrics.TOTAL_STEPS, start.total_steps)
            self.page.add(worker_metrics.STEP, start.step)
            self._count(start.samples_consumed, start.tokens_consumed)

    def _count(self, samples: int, tokens: int) -> None:
        self.page.add(worker_metrics.SAMPLES, samples)
        self.page.add(worker_metrics.TOKENS, tokens)
        self.page.add(worker_metrics.FLOPS, tokens * self._flops_per_token)
        self._samples_consumed += samples
        if self._samples_per_epoch:
            self.page.set(worker_metrics.EPOCH, self._samples_consumed / self._samples_per_epoch)

    def checkpoint_saved(self, step: int, seconds: float, size: int | None) -> None:
        """Show a checkpoint that is complete; `size`: its bytes, None if not known."""
        if size is not None:
            self.page.set(worker_metrics.CHECKPOINT_SIZE, size)
        self.page.set(worker_metrics.CHECKPOINT_STEP, step)
        self.page.set(worker_metrics.CHECKPOINT_TIME, time.time())
        self.page.set(worker_metrics.CHECKPOINT_DURATION, seconds)

    def checkpoint_failed(self, step: int) -> None:
        """Count a checkpoint that could not be written."""
        self.page.add(worker_metrics.CHECKPOINT_FAILURES)

    def checkpoint_stalled(self, seconds: float) -> None:
        """Count the time that training waited for a checkpoint."""
        if self._is_rank_0:
            self.page.add(worker_metrics.CHECKPOINT_STALL, seconds)

    def after_step(self, step: int) -> None:
        """Count one optimizer step."""
        self.page.set(worker_metrics.LAST_STEP_TIME, time.time())
        if self._is_rank_0:
            self.page.add(worker_metrics.STEP)
            self._count(self._samples_per_step, self._samples_per_step * self._config.tokens_per_sample)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add the time of each phase of a step."""
        if self._is_rank_0:
            self._durations.add(seconds)

    def broken_down(self, seconds: dict[str, float]) -> None:
        """Show the parts of a step that was traced on rank 0."""
        step = sum(seconds.values()) or 1.0
        for part, part_seconds in seconds.items():
            self.page.set(worker_metrics.STEP_PART, part_seconds / step, part)

    def skipped(self, step: int, norm: float) -> None:
        """Count a skipped step; the norm of its gradient says whether it was not finite or a spike."""
        if self._is_rank_0:
            self.page.add(worker_metrics.SKIPPED_STEPS)
            self.page.add(worker_metrics.NON_FINITE_STEPS, not math.isfinite(norm))
            self.page.set(worker_metrics.LAST_SKIPPED_STEP, step)

    def rolled_back(self, step: int) -> None:
        """Count a rollback: steps continue from its checkpoint, samples are not repeated."""
        if self._is_rank_0:
            self.page.add(worker_metrics.ROLLBACKS)
            self.page.restart(worker_metrics.STEP, step)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation."""
        if self._is_rank_0:
            for name, value in metrics.items():
                self.page.set(worker_metrics.EVALUATION.named(name), value)

    def reported(self, report: StepReport) -> None:
        """Show the measurements of a report."""
        if not self._is_rank_0:
            return
        values = report.values()
        self._reported_fields = frozenset(values)
        for field, metric in worker_metrics.gauges_by_field().items():
            if field in values:
                self.page.set(metric, values[field])
        for rank, seconds in enumerate(report.compute):
            self.page.set(worker_metrics.RANK_COMPUTE, seconds, str(rank))
        for layer, load in enumerate(report.expert_loads):
            self.page.set(worker_metrics.EXPERT_LOAD, load, str(layer))
        self.page.clear(worker_metrics.STRAGGLER_RATIO)
        for rank, ratio in report.stragglers.items():
            self.page.set(worker_metrics.STRAGGLER_RATIO, ratio, str(rank))


class _StepDurations(Collector):
    """Seconds of each phase of the training loop, as a summary whose count is the number of steps."""

    def __init__(self, config: RunConfig) -> None:
        self._labels = (config.namespace, config.job)
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add one step."""
        if not any(seconds.values()):
            return
        self._steps += 1
        for phase, passed in seconds.items():
            self._seconds[phase] += passed

    def collect(self) -> Iterable[SummaryMetricFamily]:
        metric = worker_metrics.STEP_DURATION
        family = SummaryMetricFamily(metric.name, metric.help, labels=[*constants.METRIC_LABELS, *metric.labels])
        for phase, seconds in self._seconds.items():
            family.add_metric([*self._labels, phase], self._steps, seconds)
        yield family


class _RankMemory(Collector):
    """Memory of each rank of this pod, as of the last report."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self._labels = (config.namespace, config.job)
        self._first_rank = world.rank
        self._device = world.device

    def collect(self) -> Iterable[GaugeMetricFamily]:
        metric = worker_metrics.MEMORY
        family = GaugeMetricFamily(metric.name, metric.help, labels=[*constants.METRIC_LABELS, *metric.labels])
        # Without a launcher (torchrun) the ranks share no memory, and only this rank's is known.
        memories = [Memory(*sizes) for sizes in heartbeat.collect()] or [measure(self._device)]
        for local_rank, memory in enumerate(memories):
            for kind, size in memory._asdict().items():
                if size:
                    family.add_metric([*self._labels, str(self._first_rank + local_rank), kind], size)
        yield family
