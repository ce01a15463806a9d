"""The update of the parameters from their gradients: by each rank, or by a parameter server."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from trainyard.resource.optimization import Optimizer
from trainyard_trainer.optim.gradient import clip_gradient, gradient_norm
from trainyard_trainer.optim.guard import GradientGuard
from trainyard_trainer.optim.optimizer import build_optimizers
from trainyard_trainer.optim.state import Shape, Tensors, optimizer_tensors, prepare_optimizers
from trainyard_trainer.parallel.mesh import RankMesh
from trainyard_trainer.runtime.object_store import Location

Named = Iterable[tuple[str, nn.Parameter]]


class Update(Protocol):
    """Updates the parameters from the gradients that the backward passes of a step have left in them."""

    def begin(self, folder: Location | None) -> None:
        """Start the training: parameters have their initial values, or those of the checkpoint in `folder`."""

    def tensors(self) -> Tensors:
        """Return this rank's part of the optimizer state."""

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        """Allocate the optimizer state of a checkpoint with tensors of these shapes; the caller fills `tensors`."""

    def step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Update the parameters if the gradient is good, and drop the gradient.

        The device decides whether the gradient is good, and all ranks exchange their requests with that.

        Returns:
            Norm of the gradient before clipping, a scalar, and whether the parameters are updated, a truth value; both
            on the device, which may not have computed them yet.
        """

    def after_rollback(self, folder: Location) -> None:
        """Continue after a rollback: parameters and `tensors` were filled from the checkpoint in `folder`."""

    def close(self) -> None:
        """End the training."""


class LocalUpdate:
    """Each rank updates the parameters that it holds; their gradients are summed over the ranks already."""

    def __init__(self, named: Named, config: Optimizer, mesh: RankMesh | None, guard: GradientGuard) -> None:
        """Build the optimizer; without a mesh, this rank holds all parameters."""
        named = list(named)
        self._named = named
        self._parameters = [parameter for _, parameter in named]
        self._optimizers = build_optimizers(named, config, None if mesh is None else mesh.replicas)
        self._clip = config.gradient_clip
        self._mesh = mesh
        self._guard = guard

    def begin(self, folder: Location | None) -> None:
        pass

    def tensors(self) -> Tensors:
        return optimizer_tensors(self._named, self._optimizers)

    def prepare(self, saved: Mapping[str, Shape]) -> None:
        prepare_optimizers(self._named, self._optimizers, saved)

    def after_rollback(self, folder: Location) -> None:
        pass

    def step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        norm, made = self.apply_gradients(learning_rate)
        self._optimizers.zero_grad()
        return norm, made

    def apply_gradients(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Update the parameters like `step`, but keep the gradient."""
        norm = gradient_norm(self._parameters, self._mesh)
        applied = self._guard.check(norm)
        if self._clip > 0:
            clip_gradient(self._parameters, self._clip, norm)
        self._optimizers.set_learning_rate(learning_rate)
        self._optimizers.step(applied)
        return norm, applied

    def close(self) -> None:
        pass
