"""Which columns of a table decide about the class of a row.

Letters: N rows, F features, C classes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from captum.attr import FeatureAblation, IntegratedGradients
from torch import Tensor, nn

from trainyard_trainer.explanation.attribution import TOLERANCE, Attributions, rank_correlation, until_complete
from trainyard_trainer.models.family import Model
from trainyard_trainer.models.initial import initialize
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase

AT_ONCE = 1 << 19
"""Values that pass into the model at a time: points of paths x features."""
_RANDOM_SEED = 0x72616E
"""Seed of the random weights with which the maps are compared."""


@dataclass(frozen=True)
class RowExplanation:
    """Why a row was classified as it was. Attributions are for the logit of the predicted class."""

    sample: int
    """Number of the row in the data."""
    actual: int
    predicted: int
    probability: float
    """Of the predicted class."""
    difference: float
    """Logit of the row less that of the baseline."""
    gap: float
    """Sum of the integrated gradients less the difference."""
    features: list[float]
    """Features of the row as the data has them [F]."""
    gradients: list[float]
    """Integrated gradients [F]."""
    ablation: list[float]
    """Decrease of the logit if one feature has its mean value instead [F]."""


class TableExplainer:
    """Explains the predictions of a model; the baseline is the mean of the rows that it was trained on: zeros."""

    def __init__(self, model: Model) -> None:
        """Copy the model to float64, in which long sums have no rounding that matters."""
        self._initial = model.initial
        self.model = copy.deepcopy(model).double().eval()

    @torch.no_grad()
    def predict(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted class of each row [N], and its probability [N]."""
        best = self.model(x_NF.double()).softmax(-1).max(-1)
        return best.indices, best.values

    def integrated_gradients(self, x_NF: Tensor, class_N: Tensor, model: nn.Module | None = None) -> Attributions:
        """Return the integrated gradients [N, F] of one logit of each row; `model`: another than this one."""
        method = IntegratedGradients(_beating(self.model if model is None else model))
        x_NF = x_NF.double()

        def attribute(rows: Tensor, points: int) -> tuple[Tensor, Tensor]:
            rows = rows.to(x_NF.device)
            values, gap = method.attribute(
                x_NF[rows],
                target=class_N[rows],
                n_steps=points,
                method="riemann_middle",
                internal_batch_size=max(AT_ONCE // x_NF.shape[1], len(rows)),
                return_convergence_delta=True,
            )
            return values.detach(), gap.detach()

        return until_complete(attribute, len(x_NF))

    @torch.no_grad()
    def ablation(self, x_NF: Tensor, class_N: Tensor) -> Tensor:
        """Return by how much one logit of each row falls if a feature has its mean value [N, F]."""
        x_NF = x_NF.double()
        at_once = max(1, min(x_NF.shape[1], AT_ONCE // x_NF.numel()))
        values: Tensor = FeatureAblation(_beating(self.model)).attribute(
            x_NF, target=class_N, perturbations_per_eval=at_once
        )
        return values

    def explain(self, x_NF: Tensor, actual_N: Tensor, numbers: Sequence[int]) -> list[RowExplanation]:
        """Return the explanations of rows, whose numbers in the data are given."""
        class_N, probability_N = self.predict(x_NF)
        found = self.integrated_gradients(x_NF, class_N)
        ablation_NF = self.ablation(x_NF, class_N)
        difference_N = found.values.sum(-1) - found.gap
        return [
            RowExplanation(
                sample=number,
                actual=int(actual_N[row]),
                predicted=int(class_N[row]),
                probability=float(probability_N[row]),
                difference=float(difference_N[row]),
                gap=float(found.gap[row]),
                features=x_NF[row].tolist(),
                gradients=found.values[row].tolist(),
                ablation=ablation_NF[row].tolist(),
            )
            for row, number in enumerate(numbers)
        ]

    def similarity_to_random(self, x_NF: Tensor, rows: Sequence[RowExplanation]) -> float:
        """Return the mean rank correlation of the maps with those of the same model with random weights.

        Maps that stay the same would show the input alone, and nothing that was learnt (Adebayo et al., 2018). Signs
        count: the size of an attribution follows from the input for every model.
        """
        random = copy.deepcopy(self.model)
        initialize(random, _RANDOM_SEED, self._initial)
        class_N = torch.tensor([row.predicted for row in rows], device=x_NF.device)
        maps_NF = self.integrated_gradients(x_NF, class_N, random).values.cpu()
        return sum(
            rank_correlation(torch.tensor(row.gradients), other) for row, other in zip(rows, maps_NF, strict=True)
        ) / len(rows)


def _beating(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a model that sends a heartbeat with each pass: a table may take minutes."""

    def forward(x_NF: Tensor) -> Tensor:
        heartbeat.beat(Phase.EVALUATION)
        logits_NC: Tensor = model(x_NF)
        return logits_NC

    return forward


def table_content(rows: Sequence[RowExplanation], similarity: float, image_width: int | None) -> dict[str, Any]:
    """Return the content of explanation.json.

    Args:
        rows: explanations of some rows.
        similarity: of `TableExplainer.similarity_to_random`.
        image_width: columns in a row of an image; None: rows are no images.
    """
    classes = sorted({row.predicted for row in rows})
    return {
        "kind": "table",
        "method": {
            "baseline": "mean of the rows that the model was trained on",
            "tolerance": TOLERANCE,
            "largestGap": max(abs(row.gap) for row in rows),
            "similarityToRandom": similarity,
        },
        "imageWidth": image_width,
        "overall": _means(rows, absolute=True),
        "classes": [
            {"class": number, **_means([row for row in rows if row.predicted == number], absolute=False)}
            for number in classes
        ],
        "samples": [asdict(row) for row in rows],
    }


def _means(rows: Sequence[RowExplanation], *, absolute: bool) -> Mapping[str, Any]:
    """Return the means over some rows: of the attributions, or of their absolute values."""
    means = {}
    for name in ("gradients", "ablation"):
        values = torch.tensor([getattr(row, name) for row in rows])
        means[name] = (values.abs() if absolute else values).mean(0).tolist()
    return {"count": len(rows), **means}
