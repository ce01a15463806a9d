"""Passes through a pipeline. Apart from other passes, since the import of torch's pipelining takes seconds."""

import time

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from trainyard.config import RunConfig
from trainyard.sizing.pipeline_stages import stage_count, stages_of_rank
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Batch
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.parallel.passes import isolation, values_of
from trainyard_trainer.parallel.predictions import Predictions, predict
from trainyard_trainer.plugin import Loss
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase

SCHEDULES: dict[str, type[PipelineScheduleSingle] | type[PipelineScheduleMulti]] = {
    "GPipe": ScheduleGPipe,
    "1F1B": Schedule1F1B,
    "Interleaved1F1B": ScheduleInterleaved1F1B,
    "ZBV": ScheduleZBVZeroBubble,
}


class PipelineSchedule:
    """Passes micro-batches through stages on several ranks, in the order of a torch.distributed.pipelining schedule."""

    def __init__(
        self,
        config: RunConfig,
        mesh: RankMesh,
        parts: list[nn.Module],
        device: torch.device,
        micro_batch_count: int,
        loss: Loss,
    ) -> None:
        self._loss = loss
        pipeline = config.parallelism.pipeline
        total, own = stage_count(pipeline), stages_of_rank(pipeline, mesh.at.pipeline)
        group = mesh.group("pipeline")
        stages = [PipelineStage(p, s, total, device, group=group) for p, s in zip(parts, own, strict=True)]
        schedule = SCHEDULES[pipeline.schedule]
        several = issubclass(schedule, PipelineScheduleMulti)
        self._schedule = schedule(
            stages if several else stages[0],  # type: ignore[arg-type]
            micro_batch_count,
            loss_fn=lambda logits, targets: loss(logits, targets) / self._divisor,
            scale_grads=False,
        )
        self._divisor: int | Tensor = 1
        """What the sum of the losses is divided by."""
        self._first, self._last = 0 in own, total - 1 in own
        # Every stage needs to know where documents end, if attention must not cross them.
        self._needs_data = self._first or self._last or config.trainer.data.documents == "isolated"
        self._device = device

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        began = time.perf_counter()
        heartbeat.beat(Phase.DATA)
        batch = batches.global_share(step) if self._needs_data else None
        self._divisor = batches.count_targets([batch] if batch is not None and self._last else [])
        waited = time.perf_counter() - began
        heartbeat.beat(Phase.FORWARD_BACKWARD)
        losses: list[Tensor] = []
        self._schedule.step(
            *([batch.inputs] if batch is not None and self._first else []),
            target=batch.targets if batch is not None and self._last else None,
            losses=losses if self._last else None,
            return_outputs=False,
            **isolation(None if batch is None else batch.documents),
        )
        loss = torch.stack(losses).detach().sum() if losses else torch.zeros((), device=self._device)
        return loss, waited

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[Tensor, Predictions | None]:
        losses: list[Tensor] = []
        heartbeat.beat(Phase.EVALUATION)
        self._divisor = 1
        logits = self._schedule.eval(
            *([batch.inputs] if self._first else []),
            target=batch.targets if self._last else None,
            losses=losses if self._last else None,
            **isolation(batch.documents),
        )
        if not self._last:
            return torch.zeros((), device=self._device), None
        return torch.stack(losses).sum(), predict(values_of(logits))
