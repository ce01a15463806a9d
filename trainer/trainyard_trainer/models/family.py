"""What the trainer needs of a model family: how a model is built, which modules parallelism applies to, and names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor.parallel import ParallelStyle

from trainyard.models.family import DataShape
from trainyard_trainer.models.names import HuggingFaceNames

WRAPPER = "_checkpoint_wrapped_module."
"""What torch's checkpoint wrapper puts into the names of the parameters of the module that it holds."""


class Model(nn.Module):
    """A model, or one pipeline stage of it. Names of parameters are the same in a stage as in the complete model, and
    with activation checkpointing as without.
    """

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters with their names, without the names of checkpoint wrappers."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield name.replace(WRAPPER, ""), parameter

    def initial(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return mean and standard deviation of a parameter's initial values."""
        raise NotImplementedError

    def tie(self) -> None:
        """Let modules that share a parameter hold the same one again, after each of them has been given a new one."""

    def set_positions(self, first: int, count: int, device: torch.device) -> None:
        """Set which positions of a sequence the inputs hold; a model without positions ignores it."""


class Attention(Protocol):
    """Attention whose core takes queries, keys and values; context parallelism wraps the core."""

    core: nn.Module
    """Takes queries, keys, values, and a mask or None."""


class ExpertStack(Protocol):
    """Experts whose parameters are stacks [X, ...]; expert parallelism divides the stacks and wraps the core."""

    core: nn.Module


class LoadBalance(Protocol):
    """Auxiliary loss of a layer, averaged over the tokens of the global batch."""

    batch_tokens: int | None
    """Tokens of the global batch."""
    context: dist.ProcessGroup | None
    """Ranks that hold the other parts of the same sequences."""


TensorPlan = Sequence[tuple[nn.Module, dict[str, ParallelStyle]]]
"""Modules, and the parallel style of the submodules of each by name."""


class ParallelPlan:
    """Which modules of a model parallelism applies to. A family overrides what it supports; a model has no such modules
    by default, and is replicated or sharded as one unit.
    """

    def layers(self) -> Sequence[nn.Module]:
        """Return the blocks in order: units of sharding, activation checkpointing and compilation."""
        return ()

    def embedding(self) -> nn.Module | None:
        """Return the module before the blocks whose parameters are not used in the backward pass."""
        return None

    def head(self) -> Sequence[nn.Module]:
        """Return the modules behind the blocks, which are used one after the other."""
        return ()

    def tensor_plan(self) -> TensorPlan:
        """Return how a tensor group divides the matrices, and what is communicated before and after each of them."""
        return ()

    def attentions(self) -> Sequence[Attention]:
        """Return the attention layers, which a context group computes by heads instead of positions."""
        return ()

    def experts(self) -> Sequence[nn.Module]:
        """Return the modules (`ExpertStack`) whose stacks of experts an expert group divides."""
        return ()

    def load_balances(self) -> Sequence[LoadBalance]:
        """Return the auxiliary losses inside the layers."""
        return ()


@dataclass(frozen=True)
class Family:
    """The implementation of a model family."""

    build: Callable[[Any, DataShape, range], Model]
    """Makes one pipeline stage from the resolved sizes, the shape of the data, and the range of its layers."""
    plan: Callable[[Any], ParallelPlan]
    """Makes the plan of a model that `build` has made, before anything is applied to it."""
    hugging_face: Callable[[Any], HuggingFaceNames] | None = None
    """Returns the names of the parameters in Hugging Face checkpoints, given the resolved sizes; None: there is no
    such model."""
