"""Memory that the forward pass of one micro-batch keeps on a rank for the backward pass."""

from trainyard.config import RunConfig
from trainyard.models.family import Activations, MicroBatch
from trainyard.sizing.placement import placement

DIGITS_SAMPLES = 1797
"""Rows of the builtin table `digits`."""


def activations(config: RunConfig, gpu: bool) -> Activations:
    """Return the memory of activations of one micro-batch."""
    placed, samples = placement(config), config.micro_batch
    # A step over all samples of a small table has fewer than a micro-batch may have.
    if config.trainer.batch.global_ is None and config.trainer.data.builtin == "digits":
        samples = min(samples, -(-DIGITS_SAMPLES // config.mesh.data))
    batch = MicroBatch(
        samples=samples,
        tensor=config.mesh.tensor,
        context=config.mesh.context,
        width=placed.width,
        stream_width=placed.stream_width,
        casts=placed.casts,
        gpu=gpu,
        checkpointing=config.trainer.activation_checkpointing,
    )
    return config.family.activations(config.model, batch)
