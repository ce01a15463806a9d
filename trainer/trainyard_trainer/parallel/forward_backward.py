"""Forward and backward passes of one step over this rank's share of the global batch."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainyard.config import RunConfig
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Batch
from trainyard_trainer.parallel.loss import TokenLosses
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.passes import ForwardBackward, isolation, values_of
from trainyard_trainer.parallel.predictions import Predictions, predict
from trainyard_trainer.plugin import Loss
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase


def make_forward_backward(
    config: RunConfig,
    mesh: RankMesh,
    parts: list[nn.Module],
    device: torch.device,
    batches: Batches,
    own_loss: Loss | None,
) -> ForwardBackward:
    """Return the passes that a layout needs: through a pipeline, or through all layers on this rank.

    `own_loss`: loss of a plug-in, in place of the cross-entropy.
    """
    loss = TokenLosses(compiled=config.trainer.compile) if own_loss is None else _gathers_outputs(own_loss)
    if mesh.sizes.pipeline > 1:
        from trainyard_trainer.parallel.pipeline_schedule import PipelineSchedule

        return PipelineSchedule(config, mesh, parts, device, batches.micro_batch_count, loss)
    return GradientAccumulation(config, mesh, parts[0], device, batches.micro_batch_count, loss)


class GradientAccumulation:
    """Passes one micro-batch after the other through all layers, which are on this rank, and adds up the gradients."""

    def __init__(
        self,
        config: RunConfig,
        mesh: RankMesh,
        model: nn.Module,
        device: torch.device,
        micro_batch_count: int,
        loss: Loss,
    ) -> None:
        self._loss = loss
        self._model = model
        self._micro_batch_count = micro_batch_count
        self._device = device
        # DistributedDataParallel averages over the ranks, and the gradients are to be summed.
        self._ranks = mesh.sizes.size if isinstance(model, DistributedDataParallel) else 1
        self._shards_each = config.memory_use.gradients == "sharded"
        # A sharded model casts its parameters when it gathers them.
        self._casts = config.trainer.precision == "bfloat16" and not isinstance(model, FSDPModule)

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        loss = torch.zeros((), device=self._device)
        arriving, targets_of_step, waited = _arriving(batches, step)
        for index in range(self._micro_batch_count):
            began = time.perf_counter()
            heartbeat.beat(Phase.DATA)
            inputs, targets, documents = next(arriving)
            waited += time.perf_counter() - began
            heartbeat.beat(Phase.FORWARD_BACKWARD)
            with self._sync_if(index == self._micro_batch_count - 1):
                with self._precision():
                    micro_loss = self._loss(self._model(inputs, **isolation(documents)), targets) / targets_of_step
                (micro_loss * self._ranks).backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.detach()
        return loss, waited

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Predictions | None]:
        loss = torch.zeros((), device=self._device)
        predicted = []
        for x, y, documents in _chunks(batch, self._micro_batch_count):
            heartbeat.beat(Phase.EVALUATION)
            with self._precision():
                logits = self._model(x, **isolation(documents))
                loss += self._loss(logits, y)
            predicted.append(predict(values_of(logits)))
        return loss, Predictions(*(torch.cat(parts) for parts in zip(*predicted, strict=True)))

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


def _arriving(batches: Batches, step: int) -> tuple[Iterator[Batch], int | Tensor, float]:
    """Return the micro-batches of a step, the number of its targets on all ranks, and the seconds spent waiting."""
    if not batches.varying_targets:
        return batches.micro_batches(step), batches.count_targets(()), 0.0
    # Each micro-batch has another share of the targets, so all are read before the first backward pass.
    began = time.perf_counter()
    heartbeat.beat(Phase.DATA)
    read = list(batches.micro_batches(step))
    waited = time.perf_counter() - began
    return iter(read), batches.count_targets(read), waited


def _chunks(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch in a number of equal parts."""
    parts = [[None] * count if tensor is None else tensor.chunk(count) for tensor in batch]
    for inputs, targets, documents in zip(*parts, strict=True):
        assert inputs is not None
        assert targets is not None
        yield Batch(inputs, targets, documents)


def _gathers_outputs(loss: Loss) -> Loss:
    """Return a loss that takes all outputs on each rank of a tensor group, where the model leaves them divided."""

    def gathered(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs.full_tensor() if isinstance(outputs, DTensor) else outputs, targets)

    return gathered
