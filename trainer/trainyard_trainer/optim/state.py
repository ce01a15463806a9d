"""The tensors of a run by name, on any layout: what a checkpoint holds, and how it goes back in."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainyard_trainer.optim.optimizer import Optimizers

Tensors = dict[str, Tensor]
Shape = tuple[int, ...]

_MODEL, _OPTIMIZER = "model.", "optimizer."


def model_tensors(named: Iterable[tuple[str, nn.Parameter]]) -> Tensors:
    """The parameters that this rank holds, or holds a part of."""
    return {f"{_MODEL}{name}": parameter.detach() for name, parameter in named}


def optimizer_tensors(named: Iterable[tuple[str, nn.Parameter]], optimizers: Optimizers) -> Tensors:
    """The optimizers' state of those parameters: `optimizer.KEY.NAME`, split over the ranks as they are."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in named}
    return {
        f"{_OPTIMIZER}{key}.{names[parameter]}": value
        for part in optimizers.parts
        for parameter, state in part.state.items()
        for key, value in state.items()
        if torch.is_tensor(value)
    }


def prepare_optimizers(
    named: Iterable[tuple[str, nn.Parameter]], optimizers: Optimizers, saved: Mapping[str, Shape]
) -> None:
    """Give the optimizers a state of the form that was saved, to be filled; by themselves they begin without one.

    Args:
        named: the parameters.
        optimizers: those of a run that has made no step.
        saved: shapes of all saved tensors, whole, by name.
    """
    names = {parameter: name for name, parameter in named}
    keys: dict[str, dict[str, Shape]] = {}
    for tensor, shape in saved.items():
        if tensor.startswith(_OPTIMIZER):
            key, _, name = tensor.removeprefix(_OPTIMIZER).partition(".")
            keys.setdefault(name, {})[key] = shape
    for part in optimizers.parts:
        state: dict[int, dict[str, Any]] = {}
        parameters = [p for group in part.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            shapes = keys.get(names[parameter], {})
            state[index] = {key: _empty(shape, parameter) for key, shape in shapes.items()}
        # It puts the counts of steps where each optimizer wants them.
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _empty(shape: Shape, parameter: nn.Parameter) -> Tensor:
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter, requires_grad=False)
    return torch.zeros(shape)  # a count of steps
