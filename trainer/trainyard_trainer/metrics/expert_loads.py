"""How evenly the tokens of a mixture of experts are spread over its experts, layer by layer."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from trainyard.config import RunConfig
from trainyard_trainer.models.experts import ExpertLoad
from trainyard_trainer.runtime.world import World


class ExpertLoads:
    """The loads of all layers of a model, of which this rank may hold some."""

    def __init__(self, config: RunConfig, world: World, parts: Sequence[nn.Module]) -> None:
        """Find the layers of experts among the parts of the model on this rank."""
        self._world = world
        self._layers = config.family.layers(config.model)
        named = [item for part in parts for item in part.named_modules() if isinstance(item[1], ExpertLoad)]
        self._loads = {_layer(name): load for name, load in named}

    def ratios(self) -> list[float]:
        """Return for each layer the rows of its most loaded expert since the last call, divided by the mean of all.

        All ranks must call it; it waits for the device. Empty without experts.
        """
        if not self._loads:
            return []
        experts = next(iter(self._loads.values())).experts
        count_LX = torch.zeros(self._layers, experts, dtype=torch.int64, device=self._world.device)
        for layer, load in self._loads.items():
            if (count_X := load.take()) is not None:
                count_LX[layer] = count_X
        self._world.sum(count_LX)
        ratio_L = count_LX.amax(1) * experts / count_LX.sum(1).clamp(min=1)
        return [float(ratio) for ratio in ratio_L.tolist()]


def _layer(name: str) -> int:
    """Return the number of the block that a module belongs to, the first number in its name."""
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None, f"{name} stands in no block"
    return int(found[1])
