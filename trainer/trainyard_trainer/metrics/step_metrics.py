"""Measurements of a step: loss, speed and slow ranks. All ranks take part in measuring; rank 0 reports."""

import time

import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard.sizing.model_size import flops_per_token
from trainyard_trainer.metrics.device_flops import peak_flops
from trainyard_trainer.metrics.expert_loads import ExpertLoads
from trainyard_trainer.metrics.memory_stats import measure
from trainyard_trainer.metrics.step_report import StepReport
from trainyard_trainer.metrics.stragglers import Stragglers
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.world import World


class StepMetrics:
    """Measures loss, speed and slow ranks from one report to the next."""

    def __init__(
        self, config: RunConfig, world: World, loads: ExpertLoads, *, samples_per_step: int, counts_loss: bool
    ) -> None:
        """Prepare the measurements; a rank whose loss another rank also holds has `counts_loss` False."""
        self._loads = loads
        self._config = config
        self._world = world
        self._samples_per_step = samples_per_step
        self._counts_loss = counts_loss
        self._stragglers = Stragglers(config.health.straggler, world.rank, world.size, world.device)
        self._peak = peak_flops(world.device)
        self._clock = Clock(0)

    def begin(self, step: int) -> None:
        """Start measuring after a step, at the beginning of an attempt or after a rollback."""
        self._clock = Clock(step)

    def after_step(self) -> None:
        """Time this rank's computation if it is due; called before the report, which occupies threads of rank 0."""
        self._stragglers.after_step()

    def skip(self) -> None:
        """Exclude the time since the last report from the speed, because it was not training."""
        self._clock.skip()

    def report(self, step: int, total_steps: int, loss: Tensor, norm: Tensor, learning_rate: float) -> StepReport:
        """Return the report of the step just done. It waits for the device.

        Args:
            step: number of the step, from 1.
            total_steps: optimizer steps planned in total.
            loss: this rank's part of the mean loss over the global batch, a scalar.
            norm: global norm of the gradient before clipping, a scalar.
            learning_rate: learning rate of the step.
        """
        heartbeat.publish(measure(self._world.device))
        own = loss if self._counts_loss else torch.zeros_like(loss)
        mean_loss, *compute = self._world.sum(self._stragglers.pack(own)).tolist()
        grad_norm = norm.item()
        steps, interval = self._clock.lap(step)
        samples_per_second = steps * self._samples_per_step / interval
        tokens_per_second = samples_per_second * self._config.tokens_per_sample
        return StepReport(
            step=step,
            total_steps=total_steps,
            loss=mean_loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=tokens_per_second,
            samples_per_second=samples_per_second,
            seconds=self._clock.total,
            steps=step - self._clock.first,
            mfu=self._mfu(tokens_per_second),
            compute=compute,
            expert_loads=self._loads.ratios(),
            stragglers=self._stragglers.find(compute, time.monotonic()),
        )

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Return the model FLOPs utilization at a throughput; None if the peak or the cost of a token is not known."""
        flops = flops_per_token(self._config)
        if self._peak is None or not flops:
            return None
        return tokens_per_second * flops / (self._peak * self._world.size)


class Clock:
    """Steps and seconds since the previous report."""

    def __init__(self, step: int) -> None:
        self._start = self._last = time.perf_counter()
        self.first = self._step = step

    def lap(self, step: int) -> tuple[int, float]:
        """Return steps and seconds since the previous lap, and begin the next one."""
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._last
        self._step, self._last = step, now
        return steps, seconds

    def skip(self) -> None:
        """Exclude the time since the previous lap."""
        self._last = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds from the start to the end of the last lap."""
        return self._last - self._start
