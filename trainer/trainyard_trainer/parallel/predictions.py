"""What a model predicts, and how sure it is, from logits that may be too large for a second copy in float32."""

from typing import NamedTuple

import torch
from torch import Tensor

from trainyard_trainer.parallel.loss import CHUNK


class Predictions(NamedTuple):
    """The predictions for some targets, in the shape of the targets."""

    classes: Tensor
    """The most probable class."""
    confidence: Tensor
    """Its probability by the softmax of the logits, in float32."""


def predict(logits: Tensor) -> Predictions:
    """Return the predictions of logits [..., V], all of whose V entries are here."""
    rows_NV = logits.flatten(0, -2)
    best_N, class_N = rows_NV.max(-1)
    chunks = torch.split(rows_NV, max(1, CHUNK // rows_NV.shape[-1]))
    log_sum_N = torch.cat([chunk_RV.float().logsumexp(-1) for chunk_RV in chunks])
    confidence_N = (best_N.float() - log_sum_N).exp()
    shape = logits.shape[:-1]
    return Predictions(class_N.view(shape), confidence_N.view(shape))
