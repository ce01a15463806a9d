"""The life of a run, from top to bottom, as one rank lives it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer import log
from trainyard_trainer.batches import Batches
from trainyard_trainer.evaluation import evaluate
from trainyard_trainer.mesh import RankMesh
from trainyard_trainer.metrics import Metrics
from trainyard_trainer.optimizer import learning_rate_factor
from trainyard_trainer.parallel import build_parts, parameter_count
from trainyard_trainer.passes import make_passes
from trainyard_trainer.report import StepReport
from trainyard_trainer.samples import Samples
from trainyard_trainer.server import RemoteUpdate
from trainyard_trainer.stopping import Convergence, total_steps
from trainyard_trainer.table import Table
from trainyard_trainer.update import LocalUpdate, Update
from trainyard_trainer.world import World


class Trainer:
    """A model, its data and its optimizer, trained for a number of steps.

    Losses and gradients are means over all tokens of the global batch, so the same configuration gives the same
    run on any number of ranks and with any micro-batch, up to rounding.
    """

    def __init__(self, config: RunConfig, world: World, samples: Samples) -> None:
        self.config = config
        self.world = world
        self.batches = Batches(samples, config, world)
        self.mesh = RankMesh(config.mesh, world)
        self.parts = build_parts(config, self.mesh, samples, world.device)
        named = [pair for part in self.parts for pair in part.named_parameters()]
        self.passes = make_passes(config, self.mesh, self.parts, world.device, self.batches)
        self.update: Update
        if world.servers:
            self.update = RemoteUpdate(named, world)
        else:
            self.update = LocalUpdate(named, config.trainer.optimizer, self.mesh)
        self.total_steps = total_steps(config, self.batches.trained, self.batches.global_batch)
        self.step = 0
        """Optimizer steps done."""
        self.stopped_because: str | None = None
        """Why an evaluation has ended the training, perhaps before its last step."""
        self._convergence = Convergence(config.trainer.stop)
        parameters = parameter_count(config, samples)
        log.info(
            f"{parameters:,} parameters, {samples}, {world.size} ranks on {world.device.type}: {config.mesh}",
            parameters=parameters,
            samples=self.batches.trained,
            heldOut=self.batches.held_out,
            worldSize=world.size,
            device=world.device.type,
            threads=torch.get_num_threads(),
        )
        self._classes = samples.class_count if isinstance(samples, Table) else None

    def run(
        self,
        metrics: Metrics | None,
        on_report: Callable[[StepReport], None],
        on_evaluation: Callable[[dict[str, float]], None],
    ) -> None:
        """Train to the last step. Rank 0 reports the first step, every logEverySteps-th, those
        before an evaluation, and the last.

        Between reports and evaluations nothing waits for the device.
        """
        total = self.total_steps
        every = self.config.trainer.log_every_steps
        clock = _Clock()
        if metrics is not None:
            metrics.plan(total)
        while self.step < total and not self.stopped_because:
            began = time.perf_counter()
            learning_rate = self._learning_rate()
            loss, data_seconds = self._accumulate_gradients()
            norm = self.update.step(learning_rate)
            self.step += 1
            evaluates = self._evaluates()
            if self.step == 1 or self.step % every == 0 or self.step == total or evaluates:
                report = self._report(loss, norm, learning_rate, clock)
                if self.world.rank == 0:
                    on_report(report)
            if metrics is not None:
                metrics.step(self.batches.global_batch, data_seconds, time.perf_counter() - began)
            if evaluates:
                self._evaluate(on_evaluation)
                clock.skip()
        self.update.close()

    def _evaluates(self) -> bool:
        every = self.config.trainer.evaluation.every_steps
        now = self.step == self.total_steps or (every is not None and self.step % every == 0)
        return now and self.batches.held_out > 0

    def _evaluate(self, on_evaluation: Callable[[dict[str, float]], None]) -> None:
        figures = evaluate(self.passes, self.batches, self.world, self._classes, self.mesh.counts_loss)
        if self.world.rank == 0:
            on_evaluation(figures)
        self.stopped_because = self._convergence.judge(figures["loss"])
        if self.stopped_because:
            log.info(f"stopped after step {self.step}: {self.stopped_because}")

    def _learning_rate(self) -> float:
        """That of the step to come."""
        trainer = self.config.trainer
        factor = learning_rate_factor(trainer.schedule, self.step + 1, self.total_steps)
        return trainer.optimizer.learning_rate * factor

    def _accumulate_gradients(self) -> tuple[Tensor, float]:
        """Forward and backward over this rank's share of the global batch; see `Passes.run`."""
        return self.passes.run(self.batches, self.step)

    def _report(self, loss: Tensor, norm: Tensor, learning_rate: float, clock: "_Clock") -> StepReport:
        """Figures of the step just done. All ranks must call it; it waits for the device."""
        mean_loss = self.world.sum(loss if self.mesh.counts_loss else torch.zeros_like(loss)).item()
        grad_norm = norm.item()
        steps, interval = clock.lap(self.step)
        samples_per_second = steps * self.batches.global_batch / interval
        return StepReport(
            step=self.step,
            total_steps=self.total_steps,
            loss=mean_loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=samples_per_second * self.config.tokens_per_sample,
            samples_per_second=samples_per_second,
            seconds=clock.total,
        )


class _Clock:
    """Steps and seconds since the report before."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._step = 0

    def lap(self, step: int) -> tuple[int, float]:
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._last
        self._step, self._last = step, now
        return steps, seconds

    def skip(self) -> None:
        """Do not count what came since the report: it was no training."""
        self._last = time.perf_counter()

    @property
    def total(self) -> float:
        return self._last - self._start
