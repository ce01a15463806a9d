"""Forward and backward passes of a private step: the sum of clipped gradients of single samples, and noise."""

import time
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.config import RunConfig
from trainyard_trainer.data.batches import Batches
from trainyard_trainer.data.samples import Batch
from trainyard_trainer.models.lora import LoraLinear
from trainyard_trainer.parallel.loss import TokenLosses
from trainyard_trainer.parallel.passes import ForwardBackward
from trainyard_trainer.parallel.predictions import Predictions
from trainyard_trainer.privacy.noise import BLOCK, noise_block
from trainyard_trainer.runtime import heartbeat
from trainyard_trainer.runtime.heartbeat import Phase
from trainyard_trainer.runtime.world import World


class PrivateGradients:
    """Leaves in the parameters the gradient of DP-SGD (Abadi et al., 2016), the same on every rank.

    That is (sum of the clipped gradients of the samples of the step + noise) / expected number of samples. The gradient
    of a sample is that of its mean loss. Samples are divided among the ranks; a block of the noise is added by one rank
    alone, so the sum over the ranks has it once.
    """

    def __init__(self, config: RunConfig, world: World, model: nn.Module, evaluation: ForwardBackward) -> None:
        """Attach Opacus' hooks, which compute gradients of single samples, to a model that is not divided.

        `evaluation`: passes that evaluate the same model.
        """
        from opacus.grad_sample import GradSampleHooks, register_grad_sampler

        register_grad_sampler(LoraLinear)(_gradients_of_adapters)
        assert config.trainer.privacy is not None, "only a private run has clipped gradients"
        assert config.trainer.batch.global_ is not None, "admission demands a batch"
        self._model, self._world, self._evaluation = model, world, evaluation
        self._hooks = GradSampleHooks(model, loss_reduction="sum")
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._loss = TokenLosses(compiled=False)
        self._tokens = config.tokens_per_sample
        self._expected = config.trainer.batch.global_
        self._limit = config.trainer.privacy.max_grad_norm
        self._key, self._deviation = b"", 0.0

    def begin(self, key: bytes, noise_multiplier: float) -> None:
        """Set the secret key and the size of the noise, before the first step."""
        self._key, self._deviation = key, noise_multiplier * self._limit

    def run(self, batches: Batches, step: int) -> tuple[Tensor, float]:
        """Run all micro-batches of a step (from 0); see `ForwardBackward.run`."""
        # Parameters that are not finite make the step a bad one. They are protected already, so that this shows
        # nothing; a gradient that is not finite would, and counts as zero.
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in self._parameters]).all()
        total = torch.where(finite, 0.0, torch.nan).repeat(sum(self._sizes))
        loss = torch.zeros((), device=total.device)
        waited = 0.0
        arriving = batches.micro_batches(step)
        while True:
            began = time.perf_counter()
            heartbeat.beat(Phase.DATA)
            batch = next(arriving, None)
            waited += time.perf_counter() - began
            heartbeat.beat(Phase.FORWARD_BACKWARD)
            if batch is None:
                break
            loss += self._micro_batch(batch, total)
        self._add_noise(total, step)
        self._world.sum(total)
        total /= self._expected
        for parameter, gradient in zip(self._parameters, torch.split(total, self._sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        return loss / batches.batch_size(step), waited

    def evaluate(self, batch: Batch) -> tuple[Tensor, Predictions | None]:
        """Run the forward pass of a batch without gradients; see `ForwardBackward.evaluate`."""
        return self._evaluation.evaluate(batch)

    def _micro_batch(self, batch: Batch, total: Tensor) -> Tensor:
        """Add the clipped gradients of some samples to a vector of all parameters, and return the sum of their losses.

        The loss of a sample is the mean over its tokens.
        """
        isolation: dict[str, Any] = {} if batch.documents is None else {"documents": batch.documents}
        loss = self._loss(self._model(batch.inputs, **isolation), batch.targets) / self._tokens
        with warnings.catch_warnings():
            # The inputs of the first layer need no gradient, so its hook is called with that of its outputs.
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients: list[Tensor] = [parameter.grad_sample for parameter in self._parameters]  # type: ignore[attr-defined]
        factors = clip_factors(gradients, self._limit)
        for gradient, own in zip(gradients, torch.split(total, self._sizes), strict=True):
            own.add_(factors @ gradient.flatten(1))
        self._hooks.set_grad_sample_to_none()
        for parameter in self._parameters:
            parameter.grad = None
        return loss.detach()

    def _add_noise(self, total: Tensor, step: int) -> None:
        """Add the noise of this rank's blocks to a vector of all parameters."""
        for block, part in enumerate(torch.split(total, BLOCK)):
            if block % self._world.size == self._world.rank:
                noise = self._deviation * noise_block(self._key, step, block, len(part))
                part.add_(torch.from_numpy(noise).to(part))


def _gradients_of_adapters(layer: LoraLinear, inputs: list[Tensor], outputs: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the gradients of an adapter for each sample, as Opacus asks for them; its frozen weight has none.

    Args:
        layer: the layer.
        inputs: its input [N, ..., in].
        outputs: gradient of its output [N, ..., out].
    """
    narrow = layer.scale * torch.nn.functional.linear(inputs[0], layer.lora_a)
    back = layer.scale * outputs @ layer.lora_b
    return {
        layer.lora_a: torch.einsum("n...r,n...i->nri", back, inputs[0]),
        layer.lora_b: torch.einsum("n...o,n...r->nor", outputs, narrow),
    }


@torch.no_grad()
def clip_factors(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """Return the factors [N] that scale the gradients of N samples down to the norm `limit`, where they are larger.

    Args:
        gradients: for each parameter [N, *shape]. The gradient of a sample that is not finite becomes zero: its product
            with any factor would not be finite.
        limit: largest norm of the gradient of one sample, over all parameters.
    """
    gradients = list(gradients)
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    infinite = ~norms.isfinite()
    for gradient in gradients:
        gradient.masked_fill_(infinite.view(-1, *[1] * (gradient.ndim - 1)), 0.0)
    factors: Tensor = (limit / (norms + 1e-6)).clamp(max=1.0).masked_fill(infinite, 0.0)
    return factors
