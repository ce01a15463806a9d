"""How well the model does on samples it was never trained on."""

import math

import numpy as np
import torch
from torch import Tensor

from trainyard_trainer.data.batches import IGNORED, Batches
from trainyard_trainer.parallel.passes import Passes
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World


def evaluate(passes: Passes, batches: Batches, world: World, classes: int | None, counts: bool) -> dict[str, float]:
    """Figures over all held-out samples, the same on every rank; all ranks must call it.

    Args:
        passes: the forward pass of this layout.
        batches: whose held-out samples are taken.
        world: the ranks.
        classes: number of classes; None for text, whose classes are tokens, too many for figures of each.
        counts: whether what this rank sees is a part of the sum (of a tensor group only one rank's is).

    Returns:
        loss (mean cross-entropy, in nats), perplexity of text, accuracy, and of classes precision, recall and f1, each
        the mean over the classes.
    """
    size = classes if classes is not None else 1
    # Sums over samples are all that ranks exchange, so the figures are exact however the samples are spread.
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)
    confusion = torch.zeros(size * size, dtype=torch.int64, device=world.device)
    heartbeat.beat(Phase.EVALUATION)
    for inputs, targets in batches.eval_batches():
        loss, predicted = passes.evaluate(inputs, targets)
        if predicted is None or not counts:
            continue
        seen = targets != IGNORED
        totals += torch.stack([loss.double(), ((predicted == targets) & seen).sum().double(), seen.sum().double()])
        if classes is not None:
            confusion += torch.bincount(targets[seen] * classes + predicted[seen], minlength=size * size)
    world.sum(totals)
    world.sum(confusion)
    loss_sum, correct, count = totals.tolist()
    figures = {"loss": loss_sum / count, "accuracy": correct / count}
    if classes is None:
        return {**figures, "perplexity": math.exp(min(loss_sum / count, 700.0))}
    return {**figures, **_of_classes(confusion.view(size, size))}


def _of_classes(confusion: Tensor) -> dict[str, float]:
    """Means over the classes that occur, from the number of samples of each class (row) taken for each (column)."""
    from sklearn.metrics import precision_recall_fscore_support

    counts = confusion.cpu().numpy()
    actual, taken_for = np.indices(counts.shape).reshape(2, -1)
    occur = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, taken_for, sample_weight=counts.ravel(), labels=occur, average="macro", zero_division=0.0
    )
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
