"""Evaluation on samples that the model is not trained on."""

import math

import numpy as np
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
        classes: number of classes; None for text, whose tokens are too many for metrics of each class.
        counts: whether this rank's results are part of the sum; of a tensor-parallel group only one rank's are.
        plugin: metrics and loss of a user's own, if there are any.

    Returns:
        loss (mean cross-entropy in nats) and accuracy; for text perplexity; for classes precision, recall and f1, each
        averaged over the classes; metrics of the plug-in.
    """
    size = classes if classes is not None else 1
    # Ranks exchange only sums over samples, so the metrics do not depend on how samples are divided among them.
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)
    confusion = torch.zeros(size * size, dtype=torch.int64, device=world.device)
    plugin = plugin or Plugin()
    # A first call on no predictions gives the size of the sums, which a rank without outputs needs as well.
    nothing = torch.zeros(0, dtype=torch.int64, device=world.device)
    own = {name: metric.sums(nothing, nothing).double() for name, metric in plugin.metrics.items()}
    heartbeat.beat(Phase.EVALUATION)
    for inputs, targets in batches.eval_batches():
        loss, predicted = passes.evaluate(inputs, targets)
        if predicted is None or not counts:
            continue
        counted = targets != IGNORED
        totals += torch.stack(
            [loss.double(), ((predicted == targets) & counted).sum().double(), counted.sum().double()]
        )
        for name, metric in plugin.metrics.items():
            own[name] += metric.sums(predicted[counted], targets[counted]).double()
        if classes is not None:
            confusion += torch.bincount(targets[counted] * classes + predicted[counted], minlength=size * size)
    world.sum(totals)
    world.sum(confusion)
    for sums in own.values():
        world.sum(sums)
    loss_sum, correct, count = totals.tolist()
    metrics = {"loss": loss_sum / count, "accuracy": correct / count}
    metrics |= {name: metric.value(own[name]) for name, metric in plugin.metrics.items()}
    if classes is not None:
        return {**metrics, **_class_metrics(confusion.view(size, size))}
    # Only a mean cross-entropy has a perplexity.
    perplexity = {"perplexity": math.exp(min(loss_sum / count, 700.0))} if plugin.loss is None else {}
    return {**metrics, **perplexity}


def _class_metrics(confusion: Tensor) -> dict[str, float]:
    """Return means over the classes that occur, given the confusion matrix [actual class, predicted class]."""
    from sklearn.metrics import precision_recall_fscore_support

    counts = confusion.cpu().numpy()
    actual, predicted = np.indices(counts.shape).reshape(2, -1)
    occur = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, predicted, sample_weight=counts.ravel(), labels=occur, average="macro", zero_division=0.0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
