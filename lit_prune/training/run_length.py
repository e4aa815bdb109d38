"""How long a run is, as far as a Trainer can tell: a schedule that goes beyond it would never prune."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lit_prune.common.names import class_names
from lit_prune.schedule import Unit

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def declared_length(trainer: Trainer, unit: Unit) -> int | None:
    """The length that the Trainer was given in this unit; ``None`` where it was given none.

    ``fast_dev_run`` cuts every run short, so nothing is said of its length.
    """
    length = trainer.max_steps if unit == "steps" else trainer.max_epochs
    return None if trainer.fast_dev_run or length is None or length < 0 else length  # type: ignore[attr-defined]


def known_length(trainer: Trainer, unit: Unit) -> int | None:
    """The length in this unit once training begins, when it is known how many steps an epoch has."""
    length = declared_length(trainer, unit)
    steps = _steps_an_epoch(trainer)
    other = declared_length(trainer, "epochs" if unit == "steps" else "steps")
    if steps is None or other is None:
        return length
    known = other * steps if unit == "steps" else math.ceil(other / steps)
    return known if length is None else min(length, known)


def _steps_an_epoch(trainer: Trainer) -> int | None:
    """Optimizer steps of one epoch; ``None`` where they may change, or are the user's own affair."""
    batches = trainer.num_training_batches
    if (
        math.isinf(batches)
        or not batches
        or not trainer.lightning_module.automatic_optimization
        or any("GradientAccumulationScheduler" in class_names(callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    ):
        return None
    return math.ceil(batches / trainer.accumulate_grad_batches)
