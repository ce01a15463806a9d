"""The sums of an evaluation, and the metrics that follow from them.

Ranks exchange only sums over positions, so that no metric depends on how samples are divided among them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard_trainer.parallel.predictions import Predictions
from trainyard_trainer.plugin import Metric, Plugin
from trainyard_trainer.runtime.world import World

BINS = 15
"""Intervals of the confidence, of equal width, as Guo et al., 2017, have it."""
MATRIX_CLASSES = 256
"""Most classes for which the pairs of actual and predicted class are counted: their number is its square."""
LARGEST_EXPONENT = 700.0
"""Largest loss whose perplexity float64 can hold."""


class Scores:
    """Sums over the positions of an evaluation; a position is a token, or a row of a table."""

    def __init__(self, sources: Sequence[str], classes: int | None, plugin: Plugin, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            sources: names of the sources.
            classes: number of classes; None for tokens, which are too many for metrics of each class.
            plugin: metrics and loss of a user's own, if there are any.
            device: device of the sums.
        """
        self.sources, self.classes = tuple(sources), classes
        self._own: Mapping[str, Metric] = plugin.metrics
        self.has_probabilities = plugin.loss is None
        """Whether outputs are logits, so that the loss is a cross-entropy and the softmax gives probabilities."""
        self.totals = torch.zeros(len(sources), 3, dtype=torch.float64, device=device)
        """Of each source: loss, correct predictions, positions."""
        self.by_class = torch.zeros(3, classes or 0, dtype=torch.int64, device=device)
        """How often each class is actual, predicted, and both: a matrix of all pairs may be too large."""
        pairs = classes if classes is not None and classes <= MATRIX_CLASSES else 0
        self.pairs = torch.zeros(pairs, pairs, dtype=torch.int64, device=device)
        """How often each pair of actual and predicted class occurs; empty if there are too many."""
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
        """Of each interval of the confidence: positions, sum of the confidences, correct predictions."""
        # A first call on no predictions gives the size of the sums, which a rank without outputs needs as well.
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        self.own = {name: metric.sums(nothing, nothing).double() for name, metric in self._own.items()}

    def add(self, source: int, loss: Tensor, predictions: Predictions, targets: Tensor, counted: Tensor) -> None:
        """Add the positions of a batch.

        Args:
            source: index of its source.
            loss: sum of the losses, a scalar.
            predictions: one for each target.
            targets: actual classes.
            counted: which positions count.
        """
        actual, predicted = targets[counted], predictions.classes[counted]
        right = actual == predicted
        count = right.new_full((), right.numel(), dtype=torch.float64)
        self.totals[source] += torch.stack([loss.double(), right.sum().double(), count])
        self._add_bins(predictions.confidence[counted], right)
        for name, metric in self._own.items():
            self.own[name] += metric.sums(predicted, actual).double()
        if self.classes is not None:
            chosen = (actual, predicted, actual[right])
            self.by_class += torch.stack([labels.bincount(minlength=self.classes) for labels in chosen])
        if len(self.pairs):
            counts = (actual * len(self.pairs) + predicted).bincount(minlength=self.pairs.numel())
            self.pairs += counts.view_as(self.pairs)

    def _add_bins(self, confidence: Tensor, right: Tensor) -> None:
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        values = torch.stack([torch.ones_like(confidence), confidence, right.to(confidence.dtype)]).double()
        self.bins.index_add_(1, place, values)

    def sum(self, world: World) -> None:
        """Add up the sums of all ranks, on each of them."""
        for sums in (self.totals, self.by_class, self.pairs, self.bins, *self.own.values()):
            if sums.numel():
                world.sum(sums)

    def metrics(self) -> dict[str, float]:
        """Return loss (mean cross-entropy in nats) and accuracy, and metrics of the plug-in.

        For tokens also perplexity, and with several sources loss_NAME of each; for classes precision, recall and f1,
        each averaged over the classes that occur.
        """
        loss, correct, count = self.totals.sum(0).tolist()
        metrics = {"loss": loss / count, "accuracy": correct / count}
        metrics |= {name: metric.value(self.own[name]) for name, metric in self._own.items()}
        if self.classes is not None:
            return {**metrics, **self.averages()["macro"]}
        if len(self.sources) > 1:
            means = (self.totals[:, 0] / self.totals[:, 2]).tolist()
            metrics |= {f"loss_{name}": mean for name, mean in zip(self.sources, means, strict=True)}
        # Only a mean cross-entropy has a perplexity.
        return {**metrics, **({"perplexity": perplexity(loss / count)} if self.has_probabilities else {})}

    def positions(self) -> int:
        """Return the number of positions."""
        return int(self.totals[:, 2].sum().item())

    def source_metrics(self) -> list[dict[str, Any]]:
        """Return name, positions, loss and accuracy of each source, and for tokens its perplexity."""
        rows = []
        for name, (loss, correct, count) in zip(self.sources, self.totals.tolist(), strict=True):
            row = {"name": name, "positions": int(count), "loss": loss / count, "accuracy": correct / count}
            has_perplexity = self.classes is None and self.has_probabilities
            rows.append({**row, **({"perplexity": perplexity(loss / count)} if has_perplexity else {})})
        return rows

    def class_metrics(self) -> list[dict[str, Any]]:
        """Return precision, recall and F1 of each class that occurs, and how often it is actual and predicted."""
        precision, recall, f1 = (values.tolist() for values in self._rates())
        actual, predicted, _ = self.by_class.tolist()
        return [
            {
                "class": number,
                "actual": actual[number],
                "predicted": predicted[number],
                "precision": precision[number],
                "recall": recall[number],
                "f1": f1[number],
            }
            for number in range(self.classes or 0)
            if actual[number] + predicted[number]
        ]

    def averages(self) -> dict[str, dict[str, float]]:
        """Return precision, recall and F1: `macro`, each class that occurs counts alike; `weighted`, by its samples."""
        occurs = (self.by_class[0] + self.by_class[1]).cpu() > 0
        share = self.by_class[0].cpu().double() / max(1, int(self.by_class[0].sum()))
        rates = dict(zip(("precision", "recall", "f1"), self._rates(), strict=True))
        return {
            "macro": {name: float(rate[occurs].mean()) for name, rate in rates.items()},
            "weighted": {name: float((rate * share).sum()) for name, rate in rates.items()},
        }

    def _rates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return precision, recall and F1 of each class [classes], in float64."""
        actual, predicted, right = self.by_class.cpu().double()
        # A class that is never predicted has the precision 0, and one that never occurs the recall 0.
        precision, recall = right / predicted.clamp(min=1), right / actual.clamp(min=1)
        return precision, recall, 2 * right / (actual + predicted).clamp(min=1)

    def calibration(self) -> dict[str, Any] | None:
        """Return how well confidence and accuracy agree; None if the outputs are not logits.

        `error` is the expected calibration error (Guo et al., 2017): the mean difference between the two, over
        positions; `bins` has count, mean confidence and accuracy of each interval that is not empty.
        """
        if not self.has_probabilities:
            return None
        rows, error, total = [], 0.0, max(1, self.positions())
        for index, (count, confidence, right) in enumerate(self.bins.T.tolist()):
            if not count:
                continue
            error += abs(confidence - right) / total
            rows.append(
                {
                    "from": index / BINS,
                    "to": (index + 1) / BINS,
                    "positions": int(count),
                    "confidence": confidence / count,
                    "accuracy": right / count,
                }
            )
        return {"error": error, "bins": rows}


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss in nats."""
    return math.exp(min(loss, LARGEST_EXPONENT))
