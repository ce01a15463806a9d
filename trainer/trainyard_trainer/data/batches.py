"""Which samples make up the batches of one rank."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.samples import Samples
from trainyard_trainer.data.sampling import IntArray, Sampler
from trainyard_trainer.data.table import eval_sample_count
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

IGNORED = -100
"""A target that no loss and no metric counts (as in torch.nn.functional.cross_entropy)."""

BoolArray = NDArray[np.bool_]

Batch = tuple[Tensor, Tensor]
"""Inputs and targets on the device: [N, T] and [N, T] of text, [N, features] and [N] of a table."""


class Batches:
    """The share of one rank: its samples, and of each sequence the part of the context that is its own."""

    def __init__(self, samples: Samples, config: RunConfig, world: World) -> None:
        """Raises ConfigError if nothing is left to train on."""
        mesh = config.mesh
        self._samples = samples
        self._device = world.device
        self._index, self._shares = mesh.data_index(world.rank), mesh.data
        self._part, self._parts = mesh.coordinate(world.rank).context, mesh.context
        self.eval_samples = eval_sample_count(samples.count, config.trainer.data.eval_fraction)
        """Samples for evaluation: the last ones."""
        self.train_samples = samples.count - self.eval_samples
        """Samples for training: one epoch."""
        if self.train_samples < 1:
            raise ConfigError(
                f"spec.trainer.data.evalFraction: {config.trainer.data.eval_fraction} leaves none of "
                f"{samples.count} samples to train on; lower it, or add data"
            )
        self._full = config.trainer.batch.global_ is None
        self.global_batch = config.trainer.batch.global_ or self.train_samples
        """Samples of one step, over all ranks: all that there are, if no batch is set (gd)."""
        share = math.ceil(self.global_batch / self._shares)
        self._micro = min(config.micro_batch, math.ceil(share / mesh.pipeline))
        self.micro_batch_count = math.ceil(share / self._micro / mesh.pipeline) * mesh.pipeline
        """Forward passes of one rank per step; a pipeline needs a multiple of its stages."""
        self.sampler = Sampler(self.train_samples, config.trainer.seed, self.global_batch, self._shares)
        self.origin = 0
        """Number of the sample that step 0 would begin with; not 0 after a change of the global batch in mid-run."""

    def samples_consumed(self, step: int) -> int:
        """Samples of the run that the steps before this one have drawn."""
        return self.origin + step * self.global_batch

    def set_position(self, step: int, drawn: int) -> None:
        """Let a step begin after so many samples."""
        self.origin = drawn - step * self.global_batch

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step (from 0), each read when it is asked for."""
        numbers, missing = self._draw(step)
        for start in range(0, len(numbers), self._micro):
            end = start + self._micro
            yield self._read(numbers[start:end], missing[start:end])

    def global_share(self, step: int) -> Batch:
        """The same with all micro-batches of a step in one."""
        return self._read(*self._draw(step))

    def eval_batches(self) -> Iterator[Batch]:
        """Batches as large as those of a step, until every held-out sample has been in one once."""
        size = self._micro * self.micro_batch_count * self._shares
        for start in range(0, self.eval_samples, size):
            yield self._read(*self._in_order(self.train_samples, self.eval_samples, start))

    def _draw(self, step: int) -> tuple[IntArray, BoolArray]:
        """Numbers of this rank's samples of a step, and which of them only fill up its share."""
        if self._full:
            return self._in_order(0, self.train_samples, 0)
        numbers = self.sampler.batch_windows(step, self._index, self.origin)
        return numbers, np.zeros(len(numbers), dtype=bool)

    def _in_order(self, first: int, count: int, start: int) -> tuple[IntArray, BoolArray]:
        """The same for a batch that goes through `count` samples one after the other, and is now at `start`."""
        share = self._micro * self.micro_batch_count
        places = start + self._index * share + np.arange(share)
        missing = places >= count
        return first + np.where(missing, 0, places), missing

    def _read(self, numbers: IntArray, missing: BoolArray) -> Batch:
        inputs, targets = self._samples.read(numbers, self._part, self._parts)
        if missing.any():
            rows = torch.from_numpy(missing).view(-1, *[1] * (targets.ndim - 1))
            targets = targets.masked_fill(rows, IGNORED)
        if self._device.type == "cuda":
            inputs = inputs.pin_memory().to(self._device, non_blocking=True)
            targets = targets.pin_memory().to(self._device, non_blocking=True)
        return inputs, targets
