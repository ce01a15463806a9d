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


class ForwardBackward(Protocol):
    """Computes the gradient of the mean loss over all tokens of the global batch, and leaves it in the parameters."""

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        """Run all micro-batches of a step.

        Returns:
            This rank's part of the mean loss, a scalar on the device, and the seconds spent waiting for data. The sum
            of the parts over all ranks with one tensor coordinate is the loss of the step.
        """

    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the forward pass of a batch without gradients.

        Returns:
            Sum of the losses of the batch, a scalar, and the most probable class for each target, None on ranks that
            do not compute the logits.
        """


def make_forward_backward(
    config: RunConfig, mesh: RankMesh, parts: list[nn.Module], device: torch.device, batches: Batches
) -> ForwardBackward:
    """Return the passes that a layout needs: through a pipeline, or through all layers on this rank."""
    tokens = batches.global_batch * config.tokens_per_sample
    if mesh.sizes.pipeline > 1:
        return PipelineSchedule(config, mesh, parts, device, batches.micro_batch_count, tokens)
    return GradientAccumulation(config, mesh, parts[0], device, batches.micro_batch_count, tokens)


class GradientAccumulation:
    """Passes one micro-batch after the other through all layers, which are on this rank, and adds up the gradients."""

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
        self._micro_batch_count = micro_batch_count
        self._device = device
        self._tokens = tokens
        # DistributedDataParallel averages over the ranks, and the gradients are to be summed.
        self._ranks = mesh.sizes.size if isinstance(model, DistributedDataParallel) else 1
        self._split_logits = mesh.sizes.tensor > 1
        self._shards_each = config.memory_use.gradients == "sharded"
        # A sharded model casts its parameters when it gathers them.
        self._casts = config.trainer.precision == "bfloat16" and not isinstance(model, FSDPModule)

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        loss = torch.zeros((), device=self._device)
        arriving = batches.micro_batches(step)
        waited = 0.0
        for index in range(self._micro_batch_count):
            began = time.perf_counter()
            heartbeat.beat(Phase.DATA)
            inputs, targets = next(arriving)
            waited += time.perf_counter() - began
            heartbeat.beat(Phase.FORWARD_BACKWARD)
            with self._sync_if(index == self._micro_batch_count - 1), _loss_context(self._split_logits):
                with self._precision():
                    micro_loss = token_losses(self._model(inputs), targets) / self._tokens
                (micro_loss * self._ranks).backward()  # type: ignore[no-untyped-call]
            loss += _value(micro_loss)
        return loss, waited

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        loss = torch.zeros((), device=self._device)
        predicted = []
        for x, y in zip(inputs.chunk(self._micro_batch_count), targets.chunk(self._micro_batch_count), strict=True):
            heartbeat.beat(Phase.EVALUATION)
            with _loss_context(self._split_logits), self._precision():
                logits = self._model(x)
                loss += _value(token_losses(logits, y))
            predicted.append(_value(logits).argmax(-1))
        return loss, torch.cat(predicted)

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context in which matrix products are computed in bfloat16, if autocast has to do that."""
        return torch.autocast(self._device.type, torch.bfloat16) if self._casts else nullcontext()

    def _sync_if(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch, with which gradients are exchanged as soon as they have to be."""
        # Replicas exchange gradients once per step: each holds all of them anyway.
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        # Shards are reduced after each micro-batch while its backward pass runs, or once per step from complete
        # gradients, which take the memory of all parameters (`MemoryUse.gradients`). Their replicas (hsdp) exchange
        # them once per step in both cases.
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last or self._shards_each)
            self._model.set_requires_all_reduce(last)
        return nullcontext()


class PipelineSchedule:
    """Passes micro-batches through stages on several ranks, in the order of a torch.distributed.pipelining schedule."""

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
        total, own = stage_count(pipeline), stages_of_rank(pipeline, mesh.at.pipeline)
        group = mesh.group("pipeline")
        stages = [PipelineStage(p, s, total, device, group=group) for p, s in zip(parts, own, strict=True)]
        schedule = SCHEDULES[pipeline.schedule]
        several = issubclass(schedule, PipelineScheduleMulti)
        self._schedule = schedule(
            stages if several else stages[0],  # type: ignore[arg-type]
            micro_batch_count,
            loss_fn=lambda logits, targets: token_losses(logits, targets) / tokens,
            scale_grads=False,
        )
        self._tokens = tokens
        self._first, self._last = 0 in own, total - 1 in own
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
    """Return the sum of the cross-entropies in nats, a scalar.

    Args:
        logits: [B, T, V] for text, [N, classes] for tables.
        targets: [B, T], or [N].
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="sum")


def _value(tensor: Tensor) -> Tensor:
    """Return the values of a tensor without its autograd history, gathered on each rank."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _loss_context(split_logits: bool) -> AbstractContextManager[None]:
    """Return the context in which cross_entropy takes logits that a tensor group splits by vocabulary."""
    return loss_parallel() if split_logits else nullcontext()
