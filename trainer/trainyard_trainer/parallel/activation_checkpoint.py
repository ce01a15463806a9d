"""Activation checkpointing: the backward pass recomputes what the forward pass did not keep (Chen et al., 2016)."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from trainyard_trainer.models.family import ParallelPlan

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten._grouped_mm.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""Operations whose results are kept by `selective`: those that cost the most time for the memory of their result."""


def apply_activation_checkpointing(
    model: nn.Module, plan: ParallelPlan, mode: Literal["none", "selective", "full"]
) -> None:
    """Keep only the inputs of each block; with selective also the results of its costly operations.

    Each block is replaced by a module that holds it, so that torch.compile sees the checkpoint and compiles through it;
    names of parameters do not change (`Model.named_parameters`).
    """
    if mode == "none":
        return
    contexts: dict[str, Any] = {}
    if mode == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    blocks = set(plan.layers())
    holders = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, child in holders:
        if child in blocks:
            # There is no dropout, so that no random state is restored.
            parent.register_module(name, checkpoint_wrapper(child, preserve_rng_state=False, **contexts))


def _policy(_context: Any, operation: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
