"""The batches of one rank: which samples it reads for each step and for an evaluation."""

import math
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainyard.config import RunConfig
from trainyard_trainer.data.evaluation_sets import EvaluationSet, evaluation_sets
from trainyard_trainer.data.exclusion import Exclusions
from trainyard_trainer.data.prefetch import Prefetch
from trainyard_trainer.data.samples import IGNORED, Batch, Samples, Subset
from trainyard_trainer.data.sampling import MIXED, IntArray, MixedSource, PoissonSampler, Sampler, quotas
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.world import World

EVALUATION = -1
"""Stands for the step of a part of an evaluation."""
MAX_DEPTH = 8
"""Most micro-batches that are ready in advance."""

BoolArray = NDArray[np.bool_]


class Prepared(NamedTuple):
    """A part of a step, read from the data but not yet on the device."""

    step: int
    part: int
    """Number of the part within the step."""
    numbers: IntArray
    """Samples in it."""
    batch: Batch


class Batches:
    """The share of one rank: its samples, and of each sequence the part that its context-parallel rank handles.

    A thread reads ahead: the next parts are ready, on a GPU in pinned memory, while the device works.
    """

    def __init__(self, samples: Samples, config: RunConfig, world: World) -> None:
        """Divide the samples among the ranks.

        Raises:
            ConfigError: the held-out samples leave none to train on, or spec.trainer.data.exclude is wrong.
        """
        mesh = config.mesh
        self._samples = samples
        self._device = world.device
        self._index, self._shares = mesh.data_index(world.rank), mesh.data
        self._part, self._parts = mesh.coordinate(world.rank).context, mesh.context
        self.fingerprint = samples.fingerprint
        """63 bits that identify the data set."""
        self.evaluated = evaluation_sets(samples.subsets, config.trainer.evaluation.max_samples)
        """Samples that an evaluation uses; to evaluate while training, there must be held-out ones."""
        self.eval_samples = sum(len(subset.held_out) for subset in samples.subsets)
        """Number of held-out samples, used or not."""
        self.train_samples = sum(len(subset.train) for subset in samples.subsets)
        """Number of samples for training: one epoch."""
        if any(not len(subset.train) for subset in samples.subsets):
            raise ConfigError(
                f"spec.trainer.data.evalFraction: {config.trainer.data.eval_fraction} leaves none of "
                f"{samples.count} samples to train on; lower it, or add data"
            )
        self.excluded = Exclusions(config.trainer.data.exclude, samples.subsets)
        """Samples that are left out."""
        self._world = world
        self._counts_targets = mesh.coordinate(world.rank).tensor == 0
        self._positions = config.tokens_per_sample
        self._full_batch = config.trainer.batch.global_ is None
        self.global_batch = config.trainer.batch.global_ or self.train_samples
        """Samples of one step, over all ranks; all training samples if no batch is set (gradient descent)."""
        share = math.ceil(self.global_batch / self._shares)
        self._micro_batch = min(config.micro_batch, math.ceil(share / mesh.pipeline))
        self.micro_batch_count = math.ceil(share / self._micro_batch / mesh.pipeline) * mesh.pipeline
        """Micro-batches of one rank per step; a pipeline needs a multiple of its stages."""
        self._read_at_once = self._micro_batch * (self.micro_batch_count if mesh.pipeline > 1 else 1)
        self.sampler = Sampler(
            self.train_samples, config.trainer.seed, self.global_batch, self._shares, _mixture(samples.subsets)
        )
        self._poisson: PoissonSampler | None = None
        """Batches of a private run, once its key is known."""
        self.origin = 0
        """Sample number that step 0 would begin with; not 0 once the global batch has changed during the run."""
        self._ahead: Prefetch[Prepared] | None = None
        self._next = (0, 0)
        """Step and part that the thread will hand out next."""

    def draw_privately(self, key: bytes) -> None:
        """Draw each sample of each step independently from now on, by a secret key; there is one source."""
        (subset,) = self._samples.subsets
        self.close()
        self._poisson = PoissonSampler(subset.train, self.global_batch, key)

    def batch_size(self, step: int) -> int:
        """Return the number of samples in a step (from 0), over all ranks; 0 is possible in a private run."""
        return self.global_batch if self._poisson is None else len(self._private_batch(step))

    def _private_batch(self, step: int) -> IntArray:
        """Return the samples of a private step (from 0) over all ranks, without excluded ones."""
        assert self._poisson is not None
        batch = self._poisson.batch(step)
        kept: IntArray = batch[~np.isin(batch, self.excluded.numbers)]
        return kept

    def samples_consumed(self, step: int) -> int:
        """Return the number of samples that the run has consumed before a step (from 0)."""
        return self.origin + step * self.global_batch

    def set_position(self, step: int, samples_consumed: int) -> None:
        """Let a step (from 0) begin after so many samples."""
        self.close()
        self.origin = samples_consumed - step * self.global_batch

    def close(self) -> None:
        """Stop reading ahead, until the next step is asked for."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of this rank in a step (from 0)."""
        for index in range(math.ceil(self._share(step) / self._micro_batch)):
            yield self._take(step, index)

    def _share(self, step: int) -> int:
        """Return the number of samples that this rank reads in a step (from 0)."""
        return self._micro_batch * self.micro_batch_count if self._poisson is None else len(self._draw(step)[0])

    def counted_samples(self, step: int) -> IntArray:
        """Return the numbers of those samples of this rank in a step (from 0) that are trained on, in order."""
        numbers, padding = self._draw(step)
        counted: IntArray = numbers[~padding]
        return counted

    def single(self, number: int) -> Batch:
        """Return one sample, by its number, on the device."""
        numbers = np.array([number], dtype=np.int64)
        return self._to_device(self._read(EVALUATION, 0, numbers, np.zeros(1, dtype=bool)))

    @property
    def varying_targets(self) -> bool:
        """Whether the number of targets differs from step to step."""
        return self._samples.masks_targets or len(self.excluded.numbers) > 0

    def count_targets(self, share: Iterable[Batch]) -> int | Tensor:
        """Return the number of targets of a step over all ranks, each of which must call it.

        The host does not wait for the device if the number varies: it is a tensor on the device then.

        Args:
            share: this rank's micro-batches of the step; none if another stage of the pipeline has its targets.
        """
        if not self.varying_targets:
            return self.global_batch * self._positions
        own = torch.zeros((), dtype=torch.int64, device=self._device)
        # The ranks of a tensor group have the same samples.
        for batch in share if self._counts_targets else ():
            own += (batch.targets != IGNORED).sum()
        # Without any target the sum of the losses is 0, and so is their mean.
        return self._world.sum(own).clamp(min=1)

    def global_share(self, step: int) -> Batch:
        """Return this rank's share of the global batch of a step (from 0), which a pipeline takes in one."""
        return self._take(step, 0)

    def eval_batches(self, evaluated: EvaluationSet) -> Iterator[Batch]:
        """Yield batches as large as those of a step, until each sample of a set has been in exactly one."""
        ahead = Prefetch(self._read_evaluation(evaluated), 2, self._begin_thread)
        try:
            for prepared in ahead:
                yield self._to_device(prepared)
        finally:
            ahead.close()

    def _take(self, step: int, index: int) -> Batch:
        """Return a part of a step; the thread begins again if it is not the part that follows the last one."""
        if self._ahead is None or self._next != (step, index):
            self.close()
            depth = max(2, min(MAX_DEPTH, self.micro_batch_count))
            self._ahead = Prefetch(self._read_steps(step, index), depth, self._begin_thread)
        prepared = next(self._ahead)
        last = (index + 1) * self._read_at_once >= self._share(step)
        self._next = (step + 1, 0) if last else (step, index + 1)
        return self._to_device(prepared)

    def _read_steps(self, step: int, index: int) -> Iterator[Prepared]:
        """Yield the parts of this rank from one part of a step on, without an end."""
        for current in count(step):
            numbers, padding = self._draw(current)
            for part, start in enumerate(range(0, len(numbers), self._read_at_once)):
                if (current, part) >= (step, index):
                    chosen = slice(start, start + self._read_at_once)
                    yield self._read(current, part, numbers[chosen], padding[chosen])

    def _read_evaluation(self, evaluated: EvaluationSet) -> Iterator[Prepared]:
        size = self._micro_batch * self.micro_batch_count * self._shares
        for index, start in enumerate(range(0, len(evaluated.numbers), size)):
            positions, padding = self._in_order(len(evaluated.numbers), start)
            yield self._read(EVALUATION, index, evaluated.at(positions), padding)

    def _draw(self, step: int) -> tuple[IntArray, BoolArray]:
        """Return the numbers of this rank's samples in a step, and which of them do not count: [share] each.

        What does not count is padding, or an excluded sample, of which nothing may reach the model, in whose place
        another one is read.
        """
        if self._poisson is not None:
            own = self._private_batch(step)[self._index :: self._shares]
            # A rank without samples reads one that does not count.
            return (own, np.zeros(len(own), bool)) if len(own) else (np.zeros(1, np.int64), np.ones(1, bool))
        if self._full_batch:
            numbers, padding = self._in_order(self.train_samples, 0)
        else:
            numbers = self.sampler.batch_windows(step, self._index, self.origin)
            padding = np.zeros(len(numbers), dtype=bool)
        replaced, excluded = self.excluded.replace(numbers)
        return replaced, padding | excluded

    def _in_order(self, count: int, start: int) -> tuple[IntArray, BoolArray]:
        """Return the positions of this rank's share of the batch that begins at position `start` of `count` samples.

        And which of them are padding, in whose place the first sample is read.
        """
        share = self._micro_batch * self.micro_batch_count
        positions = start + self._index * share + np.arange(share)
        padding = positions >= count
        return np.where(padding, 0, positions), padding

    def _read(self, step: int, part: int, numbers: IntArray, padding: BoolArray) -> Prepared:
        """Read samples, as the thread does."""
        inputs, targets, documents = self._samples.read(numbers, self._part, self._parts)
        if padding.any():
            rows = torch.from_numpy(padding).view(-1, *[1] * (targets.ndim - 1))
            targets = targets.masked_fill(rows, IGNORED)
        isolation = None if documents is None else self._pinned(documents)
        return Prepared(step, part, numbers, Batch(self._pinned(inputs), self._pinned(targets), isolation))

    def _begin_thread(self) -> None:
        """Let the thread pin memory for the device of this rank; for another one it would open that, too."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """Return a tensor in memory from which the device copies while the host continues."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _to_device(self, prepared: Prepared) -> Batch:
        """Return a batch on the device; the copy is queued there."""
        if self._device.type == "cpu":
            return prepared.batch
        return Batch(*(None if t is None else t.to(self._device, non_blocking=True) for t in prepared.batch))  # type: ignore[arg-type]


def _mixture(subsets: tuple[Subset, ...]) -> tuple[MixedSource, ...]:
    """Return the sources for the sampler; empty if there is only one."""
    if len(subsets) < 2:
        return ()
    shares = quotas([subset.weight for subset in subsets], MIXED)
    return tuple(MixedSource(s.train.start, len(s.train), q) for s, q in zip(subsets, shares, strict=True))
