"""A Lightning Trainer as the pruner's host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lit_prune.activations import Calibration, CalibrationBatch
from lit_prune.activations.objects import Reader
from lit_prune.common._compat import unscales_itself
from lit_prune.common.names import class_names
from lit_prune.plan import PruningPlan
from lit_prune.training.averages import Averages
from lit_prune.training.calibration_data import calibration_batches
from lit_prune.training.ddp import check_comm_hooks, forget_shapes, wrap_again
from lit_prune.training.recovery import reset_scores


class LightningHost:
    """A Trainer in ``fit``, with its LightningModule.

    Args:
        trainer: The Trainer.
        averages: What is known of the copies that follow the network.
    """

    def __init__(self, trainer: Trainer, averages: Averages) -> None:
        self.trainer = trainer
        self.known = averages
        # Of DDP's wrapper, from when it is dropped to when there is a new one.
        self._hooks: list[tuple[Any, Any]] | None = None

    @property
    def network(self) -> LightningModule:
        """The LightningModule."""
        return self.trainer.lightning_module

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """All optimizers of the Trainer."""
        return self.trainer.optimizers

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.trainer.current_epoch

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.trainer.global_step

    @property
    def ranks(self) -> int:
        """The world size."""
        return self.trainer.world_size

    @property
    def validates(self) -> bool:
        """Whether validations are run."""
        return self.trainer.enable_validation

    def check(self, plan: PruningPlan) -> None:
        """Refuse communication hooks of DDP that remember tensors of the old buckets, and unknown copies of weights."""
        check_comm_hooks(self.trainer)
        self.known.check(self.trainer, plan)

    def averages(self) -> Mapping[str, nn.Module]:
        """What callbacks and the LightningModule keep beside the network."""
        return self.known.beside(self.trainer)

    def averages_within(self, warn: bool = True) -> Mapping[str, str]:
        """Averages among the LightningModule's own children."""
        return self.known.within(self.trainer, warn)

    def batches(
        self, calibration: Calibration, of_all_ranks: bool = False, read: Reader | None = None
    ) -> Iterator[CalibrationBatch]:
        """From the calibration data that the user names, or from a loader like that of training."""
        return calibration_batches(self.trainer, self.network, calibration, of_all_ranks, read)

    def precision(self) -> AbstractContextManager[None]:
        """The Trainer's precision."""
        return self.trainer.precision_plugin.forward_context()

    def metrics(self) -> Mapping[str, float]:
        """What callbacks may monitor."""
        return {name: float(value) for name, value in self.trainer.callback_metrics.items() if value.numel() == 1}

    def forget_scores(self) -> None:
        """Let ``ModelCheckpoint`` and ``EarlyStopping`` start again."""
        reset_scores(self.trainer)

    def unwrap(self) -> None:
        """Drop compiled code, cast copies of weights, and DDP's wrapper with its buckets."""
        self._hooks = forget_shapes(self.trainer)

    def wrap(self) -> None:
        """Wrap the network for DDP again, where it was."""
        wrap_again(self.trainer, self._hooks)

    def checkpoint(self) -> str | None:
        """The newest file that a ``ModelCheckpoint`` has written, or that the run was resumed from."""
        paths: list[Any] = [self.trainer.ckpt_path]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if "ModelCheckpoint" in class_names(callback):
                paths += [callback.last_model_path, callback.best_model_path, *callback.best_k_models]
        files = [os.fspath(path) for path in paths if path and os.path.exists(path)]
        return max(files, key=os.path.getmtime, default=None)


def loss_scale(trainer: Trainer) -> float:
    """By what a loss is multiplied before the backward pass, for half precision."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """By what gradients are multiplied when an optimizer is about to step, which may unscale them itself."""
    return loss_scale(trainer) if unscales_itself(optimizer) else 1.0
