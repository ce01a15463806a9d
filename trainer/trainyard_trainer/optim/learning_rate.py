"""The learning rate over the run."""

import math
from collections.abc import Callable

from trainyard.resource.optimization import Schedule


def learning_rate_factor(
    schedule: Schedule, step: int, total_steps: int, progress_at: Callable[[int], int] = int
) -> float:
    """Return the learning rate of a step, counted from 1 to total_steps, divided by the peak.

    Args:
        schedule: shape of the learning rate.
        step: number of the step.
        total_steps: steps of the entire run.
        progress_at: progress of the run after a step, in the unit in which spec.trainer.stop counts: steps by
            default, else tokens, so that a change of the batch bends the curve nowhere.
    """
    progress, end = progress_at(step), progress_at(total_steps)
    # Warm-up by tokens or by steps, whichever is set.
    if schedule.warmup_tokens is not None:
        start = schedule.warmup_tokens
        if progress <= start:
            return progress / start
    else:
        start = progress_at(schedule.warmup_steps)
        if step <= schedule.warmup_steps:
            return step / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "wsd":
        start = max(start, end - _decay_length(schedule, total_steps, progress_at))
    if progress <= start:
        return 1.0
    done = (progress - start) / (end - start)
    remaining = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return schedule.min_ratio + (1 - schedule.min_ratio) * remaining


def _decay_length(schedule: Schedule, total_steps: int, progress_at: Callable[[int], int]) -> int:
    """Return the length of the decay of wsd, in the unit of `progress_at`: at least one step."""
    end = progress_at(total_steps)
    if schedule.decay_tokens is not None:
        return schedule.decay_tokens
    if schedule.decay_steps is not None:
        return end - progress_at(total_steps - schedule.decay_steps)
    return max(end // 10, end - progress_at(total_steps - 1))
