"""How a model is spread over the processes: applied from outside, in one place, in one fixed order."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainyard_trainer.world import World


def parallelize(model: nn.Module, world: World) -> nn.Module:
    """The model as this rank runs it.

    Data parallelism: every rank holds all parameters, and gradients are averaged while the backward pass runs
    (Li et al., 2020). With one rank there is nothing to wrap.
    """
    if world.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
