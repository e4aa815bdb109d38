"""The moving average of Ultralytics' own trainer, as a callback."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lit_prune.common._compat import lerp_all_
from lit_prune.training._compat import average_of, is_new_step_

_DECAY, _RAMP = 0.9999, 2000  # what Ultralytics' `ModelEMA` is built with


class MovingAverage(WeightAveraging):
    """The moving average of the weights that Ultralytics validates and saves, as its `ModelEMA` computes it.

    The decay rises to 0.9999 as `1 - exp(-updates / 2000)` does. Buffers are averaged, too; counters are copied.
    """

    def __init__(self) -> None:
        super().__init__(use_buffers=True)
        self._places: list[tuple[dict[str, Any], dict[str, Any], str]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the average to where the network is: it was made before the network moved."""
        self._averaged.to(pl_module.device)
        modules = dict(pl_module.named_modules())
        # Dictionaries, not tensors: those may be others after a pruning.
        self._places = [
            (stored, getattr(modules[name], kind), key)
            for name, module in self._averaged.module.named_modules()
            for kind in ("_parameters", "_buffers")
            for stored in (getattr(module, kind),)
            for key, tensor in stored.items()
            if tensor is not None
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights after each step of the optimizer."""
        if is_new_step_(self, trainer.global_step):
            self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights of the network into the average.

        `AveragedModel.update_parameters` does the same, but searches all modules for their tensors each time, which
        takes a good part of a step of a small network. It also takes the first weights whole, Ultralytics does not.
        """
        self._averaged.n_averaged += 1
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for stored, live, key in self._places:
            if stored[key].is_floating_point():
                averages.append(stored[key])
                values.append(live[key])
            else:
                stored[key].copy_(live[key])
        lerp_all_(averages, values, 1 - moving_average_decay(int(self._averaged.n_averaged)))

    @property
    def _averaged(self) -> Any:
        return average_of(self)


def moving_average_decay(updates: float) -> float:
    """Return the decay at an update, counted from 1.

    Example:
        >>> [round(moving_average_decay(updates), 4) for updates in (1, 2000, 100_000)]
        [0.0005, 0.6321, 0.9999]
    """
    return _DECAY * (1 - math.exp(-updates / _RAMP))
