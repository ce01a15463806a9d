"""Forward and backward passes of one step over this rank's share of the global batch."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

from trainyard.config import RunConfig
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase

SCHEDULES: dict[str, type[PipelineScheduleSingle] | type[PipelineScheduleMulti]] = {
    "GPipe": ScheduleGPipe,
    "1F1B": Schedule1F1B,
    "Interleaved1F1B": ScheduleInterleaved1F1B,
    "ZBV": ScheduleZBVZeroBubble,
}


class Passes(Protocol):
    """Leaves the gradient of the mean loss over all tokens of the global batch in the parameters."""

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        """Returns this rank's part of the mean loss, still on the device, and the seconds spent waiting for data.

        The parts of all ranks of one tensor coordinate add up to the loss of the step.
        """

    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sum of the losses of a batch, and the most probable class for each target; None where the logits are not."""


def make_passes(
    config: RunConfig, mesh: RankMesh, parts: list[nn.Module], device: torch.device, batches: Batches
) -> Passes:
    """The passes that a layout needs."""
    tokens = batches.global_batch * config.tokens_per_sample
    if mesh.sizes.pipeline > 1:
        return _Pipelined(config, mesh, parts, device, batches.micro_batch_count, tokens)
    return _Accumulated(config, mesh, parts[0], device, batches.micro_batch_count, tokens)


class _Accumulated:
    """One micro-batch after the other through a model that this rank has all layers of."""

    def __init__(
        self,
        config: RunConfig,
        mesh: RankMesh,
        model: nn.Module,
        device: torch.device,
        micro_batch_count: int,
        tokens: int,
    ) -> None:
        self._model = model
        self._parts = micro_batch_count
        self._device = device
        self._tokens = tokens
        # DistributedDataParallel gives the mean over the ranks, and what is wanted is the sum.
        self._ranks = mesh.sizes.size if isinstance(model, DistributedDataParallel) else 1
        self._split_logits = mesh.sizes.tensor > 1
        # A sharded model casts its parameters by itself, when it gathers them.
        self._casts = config.trainer.precision == "bfloat16" and not isinstance(model, FSDPModule)

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        loss = torch.zeros((), device=self._device)
        arriving = batches.micro_batches(step)
        waited = 0.0
        for part in range(self._parts):
            began = time.perf_counter()
            heartbeat.beat(Phase.DATA)
            inputs, targets = next(arriving)
            waited += time.perf_counter() - began
            heartbeat.beat(Phase.FORWARD_BACKWARD)
            with self._exchange_if(part == self._parts - 1), _loss_context(self._split_logits):
                with self._precision():
                    part_loss = token_losses(self._model(inputs), targets) / self._tokens
                (part_loss * self._ranks).backward()  # type: ignore[no-untyped-call]
            loss += _value(part_loss)
        return loss, waited

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        loss = torch.zeros((), device=self._device)
        predicted = []
        for x, y in zip(inputs.chunk(self._parts), targets.chunk(self._parts), strict=True):
            heartbeat.beat(Phase.EVALUATION)
            with _loss_context(self._split_logits), self._precision():
                logits = self._model(x)
                loss += _value(token_losses(logits, y))
            predicted.append(_value(logits).argmax(-1))
        return loss, torch.cat(predicted)

    def _precision(self) -> AbstractContextManager[None]:
        """Matrix products in bfloat16, if they are not anyway."""
        return torch.autocast(self._device.type, torch.bfloat16) if self._casts else nullcontext()

    def _exchange_if(self, last: bool) -> AbstractContextManager[None]:
        """Only the last micro-batch of a step needs the gradients of the other ranks."""
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
        return nullcontext()


class _Pipelined:
    """Micro-batches through stages on several ranks; torch.distributed.pipelining sends what goes between them."""

    def __init__(
        self,
        config: RunConfig,
        mesh: RankMesh,
        parts: list[nn.Module],
        device: torch.device,
        micro_batch_count: int,
        tokens: int,
    ) -> None:
        pipeline = config.parallelism.pipeline
        total, mine = stage_count(pipeline), stages_of_rank(pipeline, mesh.at.pipeline)
        group = mesh.group("pipeline")
        stages = [PipelineStage(p, s, total, device, group=group) for p, s in zip(parts, mine, strict=True)]
        schedule = SCHEDULES[pipeline.schedule]
        several = issubclass(schedule, PipelineScheduleMulti)
        self._schedule = schedule(
            stages if several else stages[0],  # type: ignore[arg-type]
            micro_batch_count,
            loss_fn=lambda logits, targets: token_losses(logits, targets) / tokens,
            scale_grads=False,
        )
        self._tokens = tokens
        self._first, self._last = 0 in mine, total - 1 in mine
        self._device = device
        self._split_logits = mesh.sizes.tensor > 1

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        began = time.perf_counter()
        heartbeat.beat(Phase.DATA)
        inputs, targets = batches.global_share(step) if self._first or self._last else (None, None)
        waited = time.perf_counter() - began
        heartbeat.beat(Phase.FORWARD_BACKWARD)
        losses: list[Tensor] = []
        with _loss_context(self._split_logits):
            self._schedule.step(
                *([inputs] if self._first else []),
                target=targets if self._last else None,
                losses=losses if self._last else None,
                return_outputs=False,
            )
        loss = torch.stack([_value(x) for x in losses]).sum() if losses else torch.zeros((), device=self._device)
        return loss, waited

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        losses: list[Tensor] = []
        heartbeat.beat(Phase.EVALUATION)
        with _loss_context(self._split_logits):
            logits = self._schedule.eval(
                *([inputs] if self._first else []),
                target=targets if self._last else None,
                losses=losses if self._last else None,
            )
        if not self._last:
            return torch.zeros((), device=self._device), None
        return torch.stack([_value(x) for x in losses]).sum() * self._tokens, _value(logits).argmax(-1)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats: logits [B, T, V] and targets [B, T], or [N, C] and [N], to a scalar."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="sum")


def _value(tensor: Tensor) -> Tensor:
    """The numbers alone: without their history, and whole on each rank."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _loss_context(split_logits: bool) -> AbstractContextManager[None]:
    """Inside of it, cross_entropy takes logits that are split over ranks by vocabulary."""
    return loss_parallel() if split_logits else nullcontext()
