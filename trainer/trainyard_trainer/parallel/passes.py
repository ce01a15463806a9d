"""What the passes of every layout have in common."""

from typing import Any, Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Batch
from trainyard_trainer.parallel.predictions import Predictions


class ForwardBackward(Protocol):
    """Computes the gradient of the mean loss over all targets of the global batch, and leaves it in the parameters."""

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        """Run all micro-batches of a step.

        Returns:
            This rank's part of the mean loss, a scalar on the device, and the seconds spent waiting for data. The sum
            of the parts over all ranks with one tensor coordinate is the loss of the step.
        """

    def evaluate(self, batch: Batch) -> tuple[Tensor, Predictions | None]:
        """Run the forward pass of a batch without gradients.

        Returns:
            Sum of the losses of the batch, a scalar, and the prediction for each target, None on ranks that do not
            compute the logits.
        """


def isolation(documents: Tensor | None) -> dict[str, Any]:
    """Return the argument by which a model learns the document of each position; none if attention crosses them."""
    return {} if documents is None else {"documents": documents}


def values_of(tensor: Tensor) -> Tensor:
    """Return the values of a tensor without its autograd history, gathered on each rank."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
