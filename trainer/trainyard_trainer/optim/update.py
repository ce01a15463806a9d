"""From a gradient to new parameters: on each rank by itself, or by a parameter server."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from trainyard.resource.optimization import Optimizer
from trainyard_trainer.optim.gradient import clip_gradient, gradient_norm
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.optim.optimizer import build_optimizers
from trainyard_trainer.optim.state import Shape, Tensors, optimizer_tensors, prepare_optimizers
from trainyard_trainer.parallel.mesh import RankMesh

Named = Iterable[tuple[str, nn.Parameter]]


class Update(Protocol):
    """Follows the gradient that a step has left in the parameters."""

    def begin(self, folder: Path | None) -> None:
        """The parameters have their first values, from a checkpoint if there is a folder."""

    def tensors(self) -> Tensors:
        """This rank's part of the optimizer's state."""

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        """Make room for the state of a checkpoint with these tensors, so that `tensors` can be filled."""

    def step(self, learning_rate: float) -> tuple[Tensor, bool]:
        """Change the parameters, if the gradient is good, and forget it.

        Returns its norm before clipping, and whether the parameters have changed. Whether a norm is good is for the
        host to say, so this waits for the device, once a step.
        """

    def after_rollback(self, folder: Path) -> None:
        """The parameters, and what `tensors` holds, have been filled from a checkpoint again."""

    def close(self) -> None:
        """No step follows."""


class LocalUpdate:
    """Each rank changes the parameters that it holds; what they need of others' gradients is in them already."""

    def __init__(self, named: Named, config: Optimizer, mesh: RankMesh | None, guard: GradientGuard) -> None:
        """Without a mesh, all of the parameters are here."""
        named = list(named)
        self._named = named
        self._parameters = [parameter for _, parameter in named]
        self._optimizers = build_optimizers(named, config)
        self._clip = config.gradient_clip
        self._mesh = mesh
        self._guard = guard

    def begin(self, folder: Path | None) -> None:
        pass

    def tensors(self) -> Tensors:
        return optimizer_tensors(self._named, self._optimizers)

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        prepare_optimizers(self._named, self._optimizers, saved)

    def after_rollback(self, folder: Path) -> None:
        pass

    def step(self, learning_rate: float) -> tuple[Tensor, bool]:
        norm, made = self.apply_gradients(learning_rate)
        self._optimizers.zero_grad()
        return norm, made

    def apply_gradients(self, learning_rate: float) -> tuple[Tensor, bool]:
        """The same, with the gradient kept where it is."""
        norm = gradient_norm(self._parameters, self._mesh)
        if not self._guard.is_good(norm.item()):
            return norm, False
        if self._clip > 0:
            clip_gradient(self._parameters, self._clip, norm)
        self._optimizers.set_learning_rate(learning_rate)
        self._optimizers.step()
        return norm, True

    def close(self) -> None:
        pass
