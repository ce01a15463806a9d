"""The optimizer, and its learning rate over time."""

import math

import torch
from torch import nn

from trainyard.training import AdamW, CosineSchedule


def build_optimizer(model: nn.Module, config: AdamW) -> torch.optim.AdamW:
    """AdamW whose weight decay spares gains of norms and all else with fewer than two dimensions."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


def learning_rate_factor(schedule: CosineSchedule, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step, from 1 to total_steps."""
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / (total_steps - schedule.warmup_steps)
    return schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
