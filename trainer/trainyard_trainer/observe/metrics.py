"""Figures for Prometheus and for the operator, which reads them into the job's status."""

import logging
import math
import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from trainyard import __version__, contract
from trainyard.config import RunConfig
from trainyard.parameters import flops_per_token
from trainyard_trainer.observe.memory import Memory, measure
from trainyard_trainer.observe.observer import Observer, Start
from trainyard_trainer.observe.report import StepReport
from trainyard_trainer.observe.stopwatch import PHASES
from trainyard_trainer.process import heartbeat
from trainyard_trainer.process.world import World

logger = logging.getLogger("trainyard")

_CHECKPOINT_STEP = "Step of the newest complete checkpoint."


class Metrics(Observer):
    """Metrics of one worker pod, kept by its first process.

    Figures of the whole job (steps, loss, throughput) come from rank 0 alone, so that summing over pods counts
    nothing twice; the other pods say when they last finished a step, and each pod how much memory its ranks use.
    """

    def __init__(self, config: RunConfig, world: World, attempt: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_RankMemory(config, world))
        self._labels = (config.namespace, config.job)
        self._config = config
        self._gauges: dict[str, Gauge] = {}
        self._flops_per_token = flops_per_token(config)
        self._epoch = 0
        """Samples to train on; 0: not known yet."""
        self._batch = 0
        """Samples of a step."""
        self._drawn = 0
        """Samples that the run has drawn."""
        self._last_step = self._gauge(contract.METRIC_LAST_STEP, "Time at which the last optimizer step ended.")
        self._leads = world.rank == 0
        if self._leads:
            self._set(contract.METRIC_ATTEMPT, "Attempt that these figures are of.", attempt)
            self._tell_what_runs(world)
            self._declare_totals()

    def _tell_what_runs(self, world: World) -> None:
        about = {
            "version": __version__,
            "model": self._config.model.name,
            "mesh": str(self._config.mesh),
            "device": world.device.type,
            "world_size": str(world.size),
        }
        names = (*contract.METRIC_LABELS, *about)
        info = Gauge(contract.METRIC_RUN_INFO, "What runs; always 1.", names, registry=self.registry)
        info.labels(*self._labels, *about.values()).set(1)

    def _declare_totals(self) -> None:
        self._steps = self._counter(contract.METRIC_STEP, "Optimizer steps done.")
        self._samples = self._counter(contract.METRIC_SAMPLES, "Samples trained on, over all ranks.")
        self._tokens = self._counter(contract.METRIC_TOKENS, "Tokens trained on, over all ranks.")
        self._flops = self._counter(
            contract.METRIC_FLOPS, "Floating-point operations of the model, forward and backward, over all ranks."
        )
        self._durations = _StepDurations(self._labels)
        self.registry.register(self._durations)
        text = "Share of each part in the last step that was sampled, on rank 0; they add up to 1."
        by_part = (*contract.METRIC_LABELS, "part")
        self._parts = Gauge(contract.METRIC_STEP_PART, text, by_part, registry=self.registry)
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

    def begin(self, start: Start) -> None:
        """Say how far the training is to go, and count on from where it stands."""
        if self._leads:
            self._epoch, self._batch = start.samples, start.batch
            self._set(contract.METRIC_TOTAL_STEPS, "Optimizer steps in all.", start.total_steps)
            self._steps.inc(start.step)
            self._count(start.drawn)

    def _count(self, samples: int) -> None:
        tokens = samples * self._config.tokens_per_sample
        self._samples.inc(samples)
        self._tokens.inc(tokens)
        self._flops.inc(tokens * self._flops_per_token)
        self._drawn += samples
        if self._epoch:
            self._set(
                contract.METRIC_EPOCH, "How often the training has gone through its samples.", self._drawn / self._epoch
            )

    def saved(self, step: int, seconds: float, size: int | None) -> None:
        """A checkpoint is complete."""
        if size is not None:
            self._set(contract.METRIC_CHECKPOINT_SIZE, "Bytes of the newest checkpoint, all files together.", size)
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

    def after_step(self, step: int) -> None:
        """Count one optimizer step. Only rank 0's figures are counted."""
        self._last_step.labels(*self._labels).set(time.time())
        if self._leads:
            self._steps.inc()
            self._count(self._batch)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add up what the time went into."""
        if self._leads:
            self._durations.add(seconds)

    def broken_down(self, seconds: dict[str, float]) -> None:
        """Show what a step of rank 0 that was sampled consisted of, by part."""
        step = sum(seconds.values()) or 1.0
        for part, spent in seconds.items():
            self._parts.labels(*self._labels, part).set(spent / step)

    def skipped(self, step: int, norm: float) -> None:
        """Count it; by the norm, whether it was no number."""
        if self._leads:
            self._skipped.inc()
            self._non_finite.inc(not math.isfinite(norm))
            self._set(contract.METRIC_SKIPPED_STEP, "The last step that has changed nothing.", step)

    def rolled_back(self, step: int) -> None:
        """Count the steps from there, and the samples on."""
        if self._leads:
            self._rollbacks.inc()
            self._steps.reset()
            self._steps.inc(step)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of an evaluation."""
        if not self._leads:
            return
        for name, value in figures.items():
            self._set(
                f"{contract.METRIC_EVALUATION}{name}", f"Held-out samples, at the last evaluation: {name}.", value
            )

    def reported(self, report: StepReport) -> None:
        """Show the figures of a report."""
        if not self._leads:
            return
        for name, text, value in (
            (contract.METRIC_LOSS, "Training loss at the last report, in nats per token.", report.loss),
            (contract.METRIC_LEARNING_RATE, "Learning rate at the last report.", report.learning_rate),
            (contract.METRIC_GRAD_NORM, "Norm of the gradient before clipping.", report.grad_norm),
            (contract.METRIC_TOKENS_PER_SECOND, "Tokens per second of all ranks.", report.tokens_per_second),
            (contract.METRIC_SAMPLES_PER_SECOND, "Samples per second of all ranks.", report.samples_per_second),
        ):
            self._set(name, text, value)
        if report.mfu is not None:
            self._set(contract.METRIC_MFU, "Share of the devices' peak that goes into training.", report.mfu)
        for rank, seconds in enumerate(report.compute):
            self._ranks.labels(*self._labels, str(rank)).set(seconds)
        self._stragglers.clear()
        for rank, ratio in report.stragglers.items():
            self._stragglers.labels(*self._labels, str(rank)).set(ratio)


class _StepDurations(Collector):
    """Seconds of each phase of the training loop, as a summary: the count is that of the steps."""

    def __init__(self, labels: tuple[str, str]) -> None:
        self._labels = labels
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._steps = 0

    def add(self, seconds: Mapping[str, float]) -> None:
        """One step more."""
        if not any(seconds.values()):
            return
        self._steps += 1
        for phase, passed in seconds.items():
            self._seconds[phase] += passed

    def collect(self) -> Iterable[SummaryMetricFamily]:
        text = (
            "Wall time of the training loop on rank 0, by what it went into; the phases add up. A GPU may lag behind "
            "by up to one report, so only the mean over several reports has a meaning."
        )
        family = SummaryMetricFamily(contract.METRIC_STEP_DURATION, text, labels=[*contract.METRIC_LABELS, "phase"])
        for phase, seconds in self._seconds.items():
            family.add_metric([*self._labels, phase], self._steps, seconds)
        yield family


class _RankMemory(Collector):
    """Memory of each rank of this pod, as of its last report."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self._labels = (config.namespace, config.job)
        self._first = world.rank
        self._device = world.device

    def collect(self) -> Iterable[GaugeMetricFamily]:
        text = "Memory of a rank. resident: on the host; allocated, reserved, peak: of torch's allocator on a GPU."
        family = GaugeMetricFamily(contract.METRIC_MEMORY, text, labels=[*contract.METRIC_LABELS, "rank", "kind"])
        # Without a launcher (torchrun) the ranks share no memory, and only this one is known.
        told = [Memory(*figures) for figures in heartbeat.told()] or [measure(self._device)]
        for local_rank, memory in enumerate(told):
            for kind, size in memory._asdict().items():
                if size:
                    family.add_metric([*self._labels, str(self._first + local_rank), kind], size)
        yield family
