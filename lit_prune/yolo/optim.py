"""How a detector is optimized: parameter groups, and how the learning rate rises and falls."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_prune.errors import ArgumentError

OptimizerName = Literal["adamw", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant"]
DEFAULT_LR: dict[OptimizerName, float] = {"adamw": 2e-3, "sgd": 1e-2}


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Put every trainable parameter in one of two groups: weights, decayed; biases and norms, not decayed.

    Example:
        >>> groups = parameter_groups(nn.Conv2d(3, 8, 1).parameters(), weight_decay=0.1)
        >>> [(group["name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('weights', 1, 0.1), ('biases_and_norms', 1, 0.0)]
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay, "name": "weights"},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0, "name": "biases_and_norms"},
    ]


def build_optimizer(name: OptimizerName, groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    """Build AdamW, whose beta1 is `momentum`, or SGD with Nesterov momentum."""
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=(momentum, 0.999))
    return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def scale_of_gradients(optimizer: Optimizer, trainer: Trainer) -> float | None:
    """By how much the gradients of a fused optimizer are too large under mixed precision; None for all others.

    It divides them in its step itself, and Lightning clips none that may be scaled.
    """
    precision = trainer.precision_plugin
    if not (isinstance(precision, MixedPrecision) and optimizer.defaults.get("fused")):
        return None
    return 1.0 if precision.scaler is None else precision.scaler.get_scale()


def build_scheduler(
    optimizer: Optimizer, trainer: Trainer, warmup_epochs: float, schedule: ScheduleName, final: float
) -> LambdaLR:
    """Build the scheduler of a run, which steps with the optimizer.

    Raises:
        ArgumentError: If the learning rate is to fall until an end that the Trainer does not have.
    """
    total = trainer.estimated_stepping_batches
    if math.isinf(total) and schedule != "constant":
        raise ArgumentError(
            f"schedule={schedule!r} needs to know where the run ends, but the Trainer has no end. "
            f"Set max_epochs or max_steps, or use schedule='constant'."
        )
    batches = trainer.num_training_batches
    epoch = total if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
    warmup = min(warmup_epochs * epoch, total) if warmup_epochs else 0
    return LambdaLR(optimizer, partial(lr_factor, warmup=warmup, total=total, schedule=schedule, final=final))


def lr_factor(step: int, *, warmup: float, total: float, schedule: ScheduleName, final: float) -> float:
    """Return the ratio to the highest learning rate at a step: a linear rise, then the schedule's fall to `final`.

    Example:
        >>> [lr_factor(step, warmup=2, total=6, schedule="linear", final=0.0) for step in range(7)]
        [0.333..., 0.666..., 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    height = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return final + (1 - final) * height
