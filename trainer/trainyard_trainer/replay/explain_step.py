"""Which samples made a step what it was: the loss of each, and its part of the gradient."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

import torch

from trainyard.base import ApiModel
from trainyard.config import RunConfig
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.places import Origin, origins
from trainyard_trainer.data.samples import IGNORED, Batch, Samples
from trainyard_trainer.optim.gradient import gradient_norm
from trainyard_trainer.parallel.forward_backward import make_forward_backward
from trainyard_trainer.replay.replay import Replay, Report, replay_of
from trainyard_trainer.replay.saved_run import SavedRun
from trainyard_trainer.runtime.object_store import Location
from trainyard_trainer.runtime.world import World

OUTLIER = 6.0
"""Deviation from which on a sample stands out."""
_TO_DEVIATIONS = 1.4826
"""Standard deviation of a normal distribution, divided by its median absolute deviation."""
_LEAST_DEVIATION = 0.05
"""Least standard deviation, in relation to the median: samples that are all alike do not make any other stand out."""


class SampleFigures(ApiModel):
    """What a sample did in a step."""

    sample: int
    """Its number, as spec.trainer.data.exclude names it."""
    loss: float | None
    """Mean loss over its tokens, in nats; absent if it is not finite."""
    grad_norm: float | None
    """Norm of its part of the gradient of the step, before clipping; absent if it is not finite."""
    deviation: float | None
    """How far loss or gradient, whichever is further, lies above the median of the samples of the step, in standard
    deviations that are estimated from the median absolute deviation (Iglewicz and Hoaglin, 1993); absent if one of the
    two is not finite."""
    origin: Origin | None = None
    """Where it comes from; given for the first samples."""


class StepExplanation(ApiModel):
    """A step, and what each of its samples did."""

    run: str
    """Identity of the run."""
    step: int
    """Number of the step, from 1."""
    restored_step: int
    """Step of the checkpoint from which the steps were made again; 0: the initial values."""
    loss: float | None
    """Loss of the step; absent if it is not finite."""
    grad_norm: float | None
    """Norm of the gradient of the step, before clipping; absent if it is not finite."""
    samples: tuple[SampleFigures, ...]
    """All samples of the step, those with the largest deviation first, before them those that are not finite."""

    @property
    def outliers(self) -> list[int]:
        """Numbers of the samples that stand out: NaN, Inf, or a loss or gradient far above the median."""
        return [s.sample for s in self.samples if s.deviation is None or s.deviation >= OUTLIER]


def explain_step(path: Location, step: int, *, top: int = 10, report: Report = lambda *_: None) -> StepExplanation:
    """Return what the samples of a step did, in one process whatever the layout of the run was.

    The step begins from the nearest checkpoint before it, or from the initial values; the steps between are made
    again. Each sample then passes forward and backward by itself. The gradient of the step is the sum of these parts.

    Args:
        path: folder of the run.
        step: number of the step, from 1.
        top: number of samples whose places and text are looked for.
        report: receives the progress.

    Raises:
        ReplayError: the run cannot be replayed.
        ConfigError: its data is missing.
    """
    run = SavedRun.open(path)
    with replay_of(run, step) as replay:
        restored = replay.trainer.step
        for done in replay.forward_to(step):
            report("steps before it", done - restored, step - 1 - restored)
        figures = sorted(_sample_figures(replay, step, report), key=_rank)
        loss, _ = replay.trainer.passes.run(replay.trainer.batches, step - 1)
        norm = gradient_norm(_parameters(replay), None)
        found = origins(replay.samples, [figure.sample for figure in figures[:top]], replay.config)
        named = [figure.replace(origin=origin) for figure, origin in zip(figures[:top], found, strict=True)]
        return StepExplanation(
            run=run.record.id,
            step=step,
            restored_step=restored,
            loss=_finite(loss.item()),
            grad_norm=_finite(norm.item()),
            samples=(*named, *figures[top:]),
        )


class SingleSamples(Batches):
    """Yields one sample of a step, whose loss and gradient are its part of those of the whole batch."""

    def __init__(self, samples: Samples, config: RunConfig, world: World) -> None:
        super().__init__(samples, config, world)
        self.micro_batch_count = 1
        self.batch: Batch | None = None
        """The sample, which `micro_batches` yields."""
        self.targets = 1
        """Targets of the whole step."""

    def count_targets(self, share: Iterable[Batch]) -> int:
        """Return the number of targets of the whole step."""
        return self.targets

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the sample."""
        assert self.batch is not None
        yield self.batch


def _sample_figures(replay: Replay, step: int, report: Report) -> list[SampleFigures]:
    trainer = replay.trainer
    singles = SingleSamples(replay.samples, replay.config, trainer.world)
    singles.set_position(trainer.step, trainer.batches.samples_consumed(trainer.step))
    passes = make_forward_backward(
        replay.config, trainer.mesh, trainer.parts, trainer.world.device, singles, replay.plugin.loss
    )
    parameters = _parameters(replay)
    numbers = trainer.batches.counted_samples(step - 1).tolist()
    counts = [int((singles.single(number).targets != IGNORED).sum()) for number in numbers]
    singles.targets = max(1, sum(counts))
    measured: list[tuple[int, float, float]] = []
    for done, (number, own) in enumerate(zip(numbers, counts, strict=True), 1):
        singles.batch = singles.single(number)
        part, _ = passes.run(singles, step - 1)
        loss = part.item() * singles.targets / max(1, own)
        measured.append((number, loss, gradient_norm(parameters, None).item()))
        for parameter in parameters:
            parameter.grad = None
        report("samples", done, len(numbers))
    losses = deviations([loss for _, loss, _ in measured])
    norms = deviations([norm for _, _, norm in measured])
    return [
        SampleFigures(
            sample=number,
            loss=_finite(loss),
            grad_norm=_finite(norm),
            deviation=_finite(max(of_loss, of_norm)) if math.isfinite(loss + norm) else None,
        )
        for (number, loss, norm), of_loss, of_norm in zip(measured, losses, norms, strict=True)
    ]


def deviations(values: Sequence[float]) -> list[float]:
    """Return how far each value lies above the median of the finite ones, in robust standard deviations."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return list(values)
    middle = median(finite)
    scale = _TO_DEVIATIONS * median(abs(value - middle) for value in finite)
    scale = max(scale, _LEAST_DEVIATION * abs(middle), sys.float_info.min)
    return [(value - middle) / scale for value in values]


def _parameters(replay: Replay) -> list[torch.nn.Parameter]:
    return [parameter for part in replay.trainer.parts for parameter in part.parameters()]


def _rank(figures: SampleFigures) -> tuple[float, int]:
    """Return the key that sorts samples: NaN and Inf first, then by deviation."""
    return (-math.inf if figures.deviation is None else -figures.deviation, figures.sample)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
