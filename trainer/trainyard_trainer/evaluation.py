"""Evaluation on samples that the model is not trained on."""

import math

import torch
from torch import Tensor

from trainyard_trainer.data.batches import IGNORED, Batches
from trainyard_trainer.parallel.forward_backward import ForwardBackward
from trainyard_trainer.plugin import Plugin
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World


def evaluate(
    passes: ForwardBackward,
    batches: Batches,
    world: World,
    classes: int | None,
    counts: bool,
    plugin: Plugin | None = None,
) -> dict[str, float]:
    """Return metrics over all evaluation samples, the same on every rank; all ranks must call it.

    Args:
        passes: the forward pass of this layout.
        batches: yields the evaluation samples.
        world: the ranks.
        classes: number of classes; None for tokens, which are too many for metrics of each class.
        counts: whether this rank's results are part of the sum; of a tensor-parallel group only one rank's are.
        plugin: metrics and loss of a user's own, if there are any.

    Returns:
        loss (mean cross-entropy in nats) and accuracy; for tokens perplexity, and with several sources loss_NAME of
        each that has held-out samples; for classes precision, recall and f1, each averaged over the classes;
        metrics of the plug-in.
    """
    # Ranks exchange only sums over samples, so the metrics do not depend on how samples are divided among them.
    totals = torch.zeros(len(batches.held_out), 3, dtype=torch.float64, device=world.device)
    # For each class how often it is actual, predicted, and both: a matrix of all pairs would be too large.
    by_class = torch.zeros(3, classes or 0, dtype=torch.int64, device=world.device)
    plugin = plugin or Plugin()
    # A first call on no predictions gives the size of the sums, which a rank without outputs needs as well.
    nothing = torch.zeros(0, dtype=torch.int64, device=world.device)
    own = {name: metric.sums(nothing, nothing).double() for name, metric in plugin.metrics.items()}
    heartbeat.beat(Phase.EVALUATION)
    for index, subset in enumerate(batches.held_out):
        for batch in batches.eval_batches(subset):
            loss, predicted = passes.evaluate(batch)
            if predicted is None or not counts:
                continue
            counted = batch.targets != IGNORED
            right = (predicted == batch.targets) & counted
            totals[index] += torch.stack([loss.double(), right.sum().double(), counted.sum().double()])
            for name, metric in plugin.metrics.items():
                own[name] += metric.sums(predicted[counted], batch.targets[counted]).double()
            if classes is not None:
                chosen = (batch.targets[counted], predicted[counted], batch.targets[right])
                by_class += torch.stack([labels.bincount(minlength=classes) for labels in chosen])
    world.sum(totals)
    if classes is not None:
        world.sum(by_class)
    for sums in own.values():
        world.sum(sums)
    loss_sum, correct, count = totals.sum(0).tolist()
    metrics = {"loss": loss_sum / count, "accuracy": correct / count}
    metrics |= {name: metric.value(own[name]) for name, metric in plugin.metrics.items()}
    if classes is not None:
        return {**metrics, **_class_metrics(by_class)}
    if len(batches.sampler.mixture) > 1:
        means = (totals[:, 0] / totals[:, 2]).tolist()
        metrics |= {f"loss_{subset.name}": mean for subset, mean in zip(batches.held_out, means, strict=True)}
    # Only a mean cross-entropy has a perplexity.
    perplexity = {"perplexity": math.exp(min(loss_sum / count, 700.0))} if plugin.loss is None else {}
    return {**metrics, **perplexity}


def _class_metrics(by_class: Tensor) -> dict[str, float]:
    """Return means over the classes that occur, given how often each is actual, predicted, and both [3, classes]."""
    actual, predicted, right = by_class.cpu().double()
    occurs = (actual + predicted) > 0
    # A class that is never predicted has the precision 0, and one that never occurs the recall 0.
    precision = right / predicted.clamp(min=1)
    recall = right / actual.clamp(min=1)
    f1 = 2 * right / (actual + predicted).clamp(min=1)
    values = {"precision": precision, "recall": recall, "f1": f1}
    return {name: float(value[occurs].mean()) for name, value in values.items()}
