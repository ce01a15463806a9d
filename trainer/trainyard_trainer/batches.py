"""Which samples make up the batches of one rank."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trainyard.resolve import RunConfig
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.samples import Samples
from trainyard_trainer.sampling import IntArray, Sampler
from trainyard_trainer.table import held_out_count
from trainyard_trainer.world import World

IGNORED = -100
"""A target that no loss and no metric counts (as in torch.nn.functional.cross_entropy)."""

Batch = tuple[Tensor, Tensor]
"""Inputs and targets on the device: [N, T] and [N, T] of text, [N, features] and [N] of a table."""


class Batches:
    """The share of one rank: its samples, and of each sequence the part of the context that is its own."""

    def __init__(self, samples: Samples, config: RunConfig, world: World) -> None:
        """Raises ConfigError if nothing is left to train on."""
        mesh = config.mesh
        self._samples = samples
        self._micro = config.micro_batch
        self._device = world.device
        self._index, self._shares = mesh.data_index(world.rank), mesh.data
        self._part, self._parts = mesh.coordinate(world.rank).context, mesh.context
        self._batch = config.trainer.batch.global_
        self.held_out = held_out_count(samples.count, config.trainer.data.held_out)
        """Samples for evaluation: the last ones."""
        self.trained = samples.count - self.held_out
        """Samples for training: one epoch."""
        if self.trained < 1:
            raise ConfigError(
                f"spec.trainer.data.heldOut: {config.trainer.data.held_out} leaves none of {samples.count} samples to "
                "train on; lower it, or add data"
            )
        self.sampler = Sampler(self.trained, config.trainer.seed, self._batch, self._shares)

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step (from 0)."""
        numbers = self.sampler.windows_of(step, self._index)
        for start in range(0, len(numbers), self._micro):
            yield self._read(numbers[start : start + self._micro])

    def whole_step(self, step: int) -> Batch:
        """The same with all micro-batches of a step in one."""
        return self._read(self.sampler.windows_of(step, self._index))

    def of_evaluation(self) -> Iterator[Batch]:
        """Batches as large as those of a step, until every held-out sample has been in one once.

        What the last of them lacks is filled up with samples whose targets are `IGNORED`.
        """
        share = self._batch // self._shares
        for batch in range(math.ceil(self.held_out / self._batch)):
            places = batch * self._batch + self._index * share + np.arange(share)
            missing = places >= self.held_out
            inputs, targets = self._read(self.trained + np.where(missing, 0, places))
            rows = torch.from_numpy(missing).to(targets.device).view(-1, *[1] * (targets.ndim - 1))
            yield inputs, targets.masked_fill(rows, IGNORED)

    def _read(self, numbers: IntArray) -> Batch:
        inputs, targets = self._samples.read(numbers, self._part, self._parts)
        if self._device.type == "cuda":
            inputs = inputs.pin_memory().to(self._device, non_blocking=True)
            targets = targets.pin_memory().to(self._device, non_blocking=True)
        return inputs, targets
