"""From a gradient to new parameters: on each rank by itself, or by a parameter server."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from trainyard.optimization import Optimizer
from trainyard_trainer.gradient import clip_gradient, gradient_norm
from trainyard_trainer.mesh import RankMesh
from trainyard_trainer.optimizer import build_optimizers
from trainyard_trainer.state import Shape, Tensors, optimizer_tensors, prepare_optimizers

Named = Iterable[tuple[str, nn.Parameter]]


class Update(Protocol):
    """Follows the gradient that a step has left in the parameters."""

    def begin(self, folder: Path | None) -> None:
        """The parameters have their first values, from a checkpoint if there is a folder."""

    def tensors(self) -> Tensors:
        """This rank's part of the optimizer's state."""

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        """Make room for the state of a checkpoint with these tensors, so that `tensors` can be filled."""

    def step(self, learning_rate: float) -> Tensor:
        """Change the parameters and forget the gradient. Returns its norm before clipping, still on the device."""

    def close(self) -> None:
        """No step follows."""


class LocalUpdate:
    """Each rank changes the parameters that it holds; what they need of others' gradients is in them already."""

    def __init__(self, named: Named, config: Optimizer, mesh: RankMesh | None) -> None:
        """Without a mesh, all of the parameters are here."""
        named = list(named)
        self._named = named
        self._parameters = [parameter for _, parameter in named]
        self._optimizers = build_optimizers(named, config)
        self._clip = config.gradient_clip
        self._mesh = mesh

    def begin(self, folder: Path | None) -> None:
        pass

    def tensors(self) -> Tensors:
        return optimizer_tensors(self._named, self._optimizers)

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        prepare_optimizers(self._named, self._optimizers, saved)

    def step(self, learning_rate: float) -> Tensor:
        norm = self.follow(learning_rate)
        self._optimizers.zero_grad()
        return norm

    def follow(self, learning_rate: float) -> Tensor:
        """The same, with the gradient kept where it is."""
        norm = gradient_norm(self._parameters, self._mesh)
        if self._clip > 0:
            clip_gradient(self._parameters, self._clip, norm)
        self._optimizers.set_learning_rate(learning_rate)
        self._optimizers.step()
        return norm

    def close(self) -> None:
        pass
