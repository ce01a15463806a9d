"""A multi-layer perceptron that classifies."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainyard_trainer.models.family import Model


class Mlp(Model):
    """Features [N, width] in, logits [N, classes] out; ReLU between dense layers, the softmax is a part of the loss."""

    def __init__(self, width: int, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        sizes = (width, *hidden, classes)
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.dense
        for layer in inner:
            x = F.relu(layer(x))
        logits: Tensor = last(x)
        return logits

    def initial(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return mean and standard deviation of a parameter's initial values (He et al., 2015)."""
        return (0.0, math.sqrt(2 / shape[1])) if len(shape) == 2 else (0.0, 0.0)
