"""The tensors of a run by name, the same on every layout: what a checkpoint holds, and how it is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainyard_trainer.optim.optimizer import Optimizers
from trainyard_trainer.runtime.errors import ConfigError
from trainyard_trainer.runtime.object_store import Location

Tensors = dict[str, Tensor]
Shape = tuple[int, ...]

_MODEL, _OPTIMIZER = "model.", "optimizer."


def model_tensor(name: str) -> str:
    """Return the name of a parameter's tensor in a checkpoint."""
    return f"{_MODEL}{name}"


def model_tensors(named: Iterable[tuple[str, nn.Parameter]]) -> Tensors:
    """Return the parameters, or shards of them, that this rank holds: `model.NAME`."""
    return {model_tensor(name): parameter.detach() for name, parameter in named}


def optimizer_tensors(named: Iterable[tuple[str, nn.Parameter]], optimizers: Optimizers) -> Tensors:
    """Return the optimizer state of those parameters: `optimizer.KEY.NAME`, sharded like the parameters."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in named}
    return {
        f"{_OPTIMIZER}{key}.{names[parameter]}": value
        for part in optimizers.parts
        for parameter, state in part.state.items()
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def check_parameters(named: Iterable[tuple[str, nn.Parameter]], saved: Mapping[str, Shape], folder: Location) -> None:
    """Check that a checkpoint has parameters of the same names and shapes, which a custom model may have changed.

    Raises:
        ConfigError: it has others; the message names the first of them.
    """
    for name, parameter in named:
        shape = saved.get(model_tensor(name))
        if shape != tuple(parameter.shape):
            there = "does not exist" if shape is None else f"has the shape {list(shape)}"
            raise ConfigError(
                f"spec.trainer.model: its parameter {name} has the shape {list(parameter.shape)}, but {there} in the "
                f"checkpoint {folder}; change it back, or choose another spec.checkpoint volume"
            )


def is_optimizer_state(name: str) -> bool:
    """Return whether a tensor with this name belongs to an optimizer."""
    return name.startswith(_OPTIMIZER)


def prepare_optimizers(
    named: Iterable[tuple[str, nn.Parameter]], optimizers: Optimizers, saved: Mapping[str, Shape]
) -> None:
    """Allocate optimizer state of the shapes that were saved, to be filled; new optimizers have no state.

    Args:
        named: the parameters.
        optimizers: optimizers that have made no step.
        saved: shapes of all saved tensors, undivided, by name.
    """
    names = {parameter: name for name, parameter in named}
    keys: dict[str, dict[str, Shape]] = {}
    for tensor, shape in saved.items():
        if is_optimizer_state(tensor):
            key, _, name = tensor.removeprefix(_OPTIMIZER).partition(".")
            keys.setdefault(name, {})[key] = shape
    for part in optimizers.parts:
        state: dict[int, dict[str, Any]] = {}
        parameters = [(p, group.get("momentum")) for group in part.param_groups for p in group["params"]]
        for index, (parameter, momentum) in enumerate(parameters):
            shapes = keys.get(names[parameter], {})
            # RMSprop allocates its state once, so a momentum that was turned on since the checkpoint starts at 0.
            if momentum and "square_avg" in shapes:
                shapes = {"momentum_buffer": tuple(parameter.shape), **shapes}
            state[index] = {key: _empty(shape, parameter) for key, shape in shapes.items()}
        # load_state_dict moves the step counts to the device that each optimizer expects.
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _empty(shape: Shape, parameter: nn.Parameter) -> Tensor:
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter, requires_grad=False)
    # A step count is not sharded.
    return torch.zeros(shape)
