"""The life of a run, from top to bottom, as one rank lives it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainyard.resolve import RunConfig
from trainyard_trainer import log
from trainyard_trainer.data import Batches, TokenFile
from trainyard_trainer.metrics import Metrics
from trainyard_trainer.model import Gpt, initialize, parameter_count
from trainyard_trainer.optimizer import build_optimizer, learning_rate_factor
from trainyard_trainer.parallel import parallelize
from trainyard_trainer.report import StepReport
from trainyard_trainer.world import World


class Trainer:
    """A model, its data and its optimizer, trained for a number of steps.

    Losses and gradients are means over all tokens of the global batch, so the same configuration gives the same
    run on any number of ranks and with any micro-batch, up to rounding.
    """

    def __init__(self, config: RunConfig, world: World, tokens: TokenFile) -> None:
        self.config = config
        self.world = world
        self.batches = Batches(tokens, config, world)
        model = Gpt(config.model)
        initialize(model, config.trainer.seed, config.model.layers)
        self.model = parallelize(model.to(world.device), world)
        self.optimizer = build_optimizer(self.model, config.trainer.optimizer)
        self.step = 0
        """Optimizer steps done."""
        log.info(
            f"{parameter_count(model):,} parameters, {tokens.count:,} tokens in a vocabulary of "
            f"{config.model.vocab_size:,}, {world.size} ranks on {world.device.type}",
            parameters=parameter_count(model),
            tokens=tokens.count,
            vocabulary=config.model.vocab_size,
            worldSize=world.size,
            device=world.device.type,
            threads=torch.get_num_threads(),
        )

    def run(self, metrics: Metrics | None, on_report: Callable[[StepReport], None]) -> None:
        """Train to the last step. Rank 0 reports the first step, every logEverySteps-th, and the last.

        Between reports nothing waits for the device.
        """
        total = self.config.trainer.stop.steps
        every = self.config.trainer.log_every_steps
        clock = _Clock()
        while self.step < total:
            began = time.perf_counter()
            learning_rate = self._set_learning_rate(self.step + 1)
            loss, data_seconds = self._accumulate_gradients()
            norm = self._clip_gradients()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.step == 1 or self.step % every == 0 or self.step == total:
                report = self._report(loss, norm, learning_rate, clock)
                if self.world.rank == 0:
                    on_report(report)
            if metrics is not None:
                metrics.step(data_seconds, time.perf_counter() - began)

    def _set_learning_rate(self, step: int) -> float:
        trainer = self.config.trainer
        factor = learning_rate_factor(trainer.schedule, step, trainer.stop.steps)
        learning_rate = trainer.optimizer.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _accumulate_gradients(self) -> tuple[Tensor, float]:
        """Forward and backward over this rank's share of the global batch.

        Returns the mean loss over that share, still on the device, and the seconds spent waiting for data.
        """
        parts = self.config.accumulation
        loss = torch.zeros((), device=self.world.device)
        batches = self.batches.of_step(self.step)
        waited = 0.0
        for part in range(parts):
            began = time.perf_counter()
            inputs, targets = next(batches)
            waited += time.perf_counter() - began
            with self._no_exchange() if part < parts - 1 else nullcontext():
                logits = self.model(inputs)
                part_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / parts
                part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.detach()
        return loss, waited

    def _no_exchange(self) -> AbstractContextManager[None]:
        """Only the last micro-batch of a step needs the gradients of the other ranks."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _clip_gradients(self) -> Tensor:
        """Scale the gradient down to the largest norm allowed; the norm before that, still on the device."""
        limit = self.config.trainer.optimizer.gradient_clip
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if limit > 0:
            clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return norm

    def _report(self, loss: Tensor, norm: Tensor, learning_rate: float, clock: "_Clock") -> StepReport:
        """Figures of the step just done. All ranks must call it; it waits for the device."""
        mean_loss = (self.world.sum(loss) / self.world.size).item()
        grad_norm = norm.item()
        steps, interval = clock.lap(self.step)
        samples_per_second = steps * self.config.trainer.batch.global_ / interval
        return StepReport(
            step=self.step,
            total_steps=self.config.trainer.stop.steps,
            loss=mean_loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=samples_per_second * self.config.model.sequence_length,
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

    @property
    def total(self) -> float:
        return self._last - self._start
