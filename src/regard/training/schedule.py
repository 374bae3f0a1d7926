"""The learning rate of each iteration, as a share of its highest value."""

from __future__ import annotations

import math

from regard.config import TrainConfig


def rate(config: TrainConfig, *, step: int, steps_per_epoch: int, steps: int) -> float:
    """The factor of the learning rate at an iteration.

    Args:
        config: the schedule and its settings.
        step: iteration, from 0.
        steps_per_epoch: iterations in an epoch.
        steps: iterations in the run.

    Returns:
        From 0 to 1.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return float(config.step_factor ** (step // steps_per_epoch // config.step_epochs))
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
