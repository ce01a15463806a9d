"""Matrix products of the blocks in float8 (Micikevicius et al., 2022), by torchao.

Inputs, weights and gradients of each product are scaled row by row, so that a large value costs only its own row the
precision, and no maximum is exchanged between ranks. Parameters, their optimizer state, norms, attention, head and loss
are as without it.
"""

import warnings

import torch
from torch import nn

from trainyard_trainer.models.family import ParallelPlan
from trainyard_trainer.runtime.errors import ConfigError

CAPABILITY = (9, 0)
"""Compute capability of the first GPUs with kernels for rows of float8 (Hopper)."""

MULTIPLE = 16
"""Rows and columns of each product must be multiples of it."""


def apply_float8(plan: ParallelPlan, device: torch.device) -> None:
    """Replace the linear layers of the blocks; the names of parameters do not change.

    On a CPU the products are computed in higher precision from rounded numbers, for tests.

    Raises:
        ConfigError: the GPU computes no float8.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        raise ConfigError(
            f"spec.trainer.float8: {torch.cuda.get_device_name(device)} has no float8 products scaled by rows "
            "(compute capability 9.0 or newer: H100, H200, B200 and later); remove it"
        )
    with warnings.catch_warnings(action="ignore"):  # of torchao, about parts of it that are not used here
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        from torchao.float8.config import CastConfig, ScalingGranularity

    rows = CastConfig(scaling_granularity=ScalingGranularity.AXISWISE, target_dtype=torch.float8_e4m3fn)
    config = Float8LinearConfig(
        cast_config_input=rows,
        cast_config_weight=rows,
        cast_config_grad_output=rows,
        round_scales_to_power_of_2=True,
        emulate=device.type == "cpu",
    )
    for block in plan.layers():
        convert_to_float8_training(block, config=config, module_filter_fn=_fits)


def _fits(module: nn.Module, _name: str) -> bool:
    """Return whether a module is a linear layer that the kernels can take; others stay as they are."""
    return type(module) is nn.Linear and module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
