"""The batches of one rank: which samples it reads for each step and for an evaluation."""

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
    """The share of one rank: its samples, and of each sequence the part that its context-parallel rank handles."""

    def __init__(self, samples: Samples, config: RunConfig, world: World) -> None:
        """Divide the samples among the ranks.

        Raises:
            ConfigError: evalFraction leaves no samples to train on.
        """
        mesh = config.mesh
        self._samples = samples
        self._device = world.device
        self._index, self._shares = mesh.data_index(world.rank), mesh.data
        self._part, self._parts = mesh.coordinate(world.rank).context, mesh.context
        self.fingerprint = samples.fingerprint
        """63 bits that identify the data set."""
        self.eval_samples = eval_sample_count(samples.count, config.trainer.data.eval_fraction)
        """Number of samples for evaluation: the last ones of the data set."""
        self.train_samples = samples.count - self.eval_samples
        """Number of samples for training: one epoch."""
        if self.train_samples < 1:
            raise ConfigError(
                f"spec.trainer.data.evalFraction: {config.trainer.data.eval_fraction} leaves none of "
                f"{samples.count} samples to train on; lower it, or add data"
            )
        self._full_batch = config.trainer.batch.global_ is None
        self.global_batch = config.trainer.batch.global_ or self.train_samples
        """Samples of one step, over all ranks; all training samples if no batch is set (gradient descent)."""
        share = math.ceil(self.global_batch / self._shares)
        self._micro_batch = min(config.micro_batch, math.ceil(share / mesh.pipeline))
        self.micro_batch_count = math.ceil(share / self._micro_batch / mesh.pipeline) * mesh.pipeline
        """Micro-batches of one rank per step; a pipeline needs a multiple of its stages."""
        self.sampler = Sampler(self.train_samples, config.trainer.seed, self.global_batch, self._shares)
        self.origin = 0
        """Sample number that step 0 would begin with; not 0 once the global batch has changed during the run."""

    def samples_consumed(self, step: int) -> int:
        """Return the number of samples that the run has consumed before a step (from 0)."""
        return self.origin + step * self.global_batch

    def set_position(self, step: int, samples_consumed: int) -> None:
        """Let a step (from 0) begin after so many samples."""
        self.origin = samples_consumed - step * self.global_batch

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of this rank in a step (from 0); each is read when it is asked for."""
        numbers, padding = self._draw(step)
        for start in range(0, len(numbers), self._micro_batch):
            end = start + self._micro_batch
            yield self._read(numbers[start:end], padding[start:end])

    def global_share(self, step: int) -> Batch:
        """Return this rank's share of the global batch of a step (from 0): all its micro-batches in one."""
        return self._read(*self._draw(step))

    def eval_batches(self) -> Iterator[Batch]:
        """Yield batches as large as those of a step, until each evaluation sample has been in exactly one."""
        size = self._micro_batch * self.micro_batch_count * self._shares
        for start in range(0, self.eval_samples, size):
            yield self._read(*self._in_order(self.train_samples, self.eval_samples, start))

    def _draw(self, step: int) -> tuple[IntArray, BoolArray]:
        """Return the numbers of this rank's samples in a step, and which of them are padding: [share] each."""
        if self._full_batch:
            return self._in_order(0, self.train_samples, 0)
        numbers = self.sampler.batch_windows(step, self._index, self.origin)
        return numbers, np.zeros(len(numbers), dtype=bool)

    def _in_order(self, first: int, count: int, start: int) -> tuple[IntArray, BoolArray]:
        """Return this rank's share of the batch from `start` on, of `count` samples in order, and its padding.

        `first`: number of the first of these samples in the data set.
        """
        share = self._micro_batch * self.micro_batch_count
        positions = start + self._index * share + np.arange(share)
        padding = positions >= count
        return first + np.where(padding, 0, positions), padding

    def _read(self, numbers: IntArray, padding: BoolArray) -> Batch:
        inputs, targets = self._samples.read(numbers, self._part, self._parts)
        if padding.any():
            rows = torch.from_numpy(padding).view(-1, *[1] * (targets.ndim - 1))
            targets = targets.masked_fill(rows, IGNORED)
        if self._device.type == "cuda":
            inputs = inputs.pin_memory().to(self._device, non_blocking=True)
            targets = targets.pin_memory().to(self._device, non_blocking=True)
        return inputs, targets
