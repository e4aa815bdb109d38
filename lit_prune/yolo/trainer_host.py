"""Ultralytics' own trainer as the pruner's host."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_prune.activations import Calibration, CalibrationBatch
from lit_prune.activations.objects import Reader
from lit_prune.errors import ArgumentError, CalibrationError
from lit_prune.graph import Call
from lit_prune.plan import PruningPlan
from lit_prune.yolo.dataset import build_dataset
from lit_prune.yolo.evaluation import forget_anchors_


class UltralyticsHost:
    """A trainer of Ultralytics on one device, with its network.

    Args:
        trainer: One of Ultralytics' trainers, once it is set up.
    """

    ranks = 1
    validates = True

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        network: nn.Module = self.trainer.model
        return network

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The one optimizer."""
        return [self.trainer.optimizer]

    @property
    def epoch(self) -> int:
        """The epoch that begins."""
        return int(self.trainer.epoch)

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return int(self.trainer.ema.updates)

    def calls(self) -> list[Call]:
        """How the network is entered: by one image of the size that is trained on."""
        channels, side = self.trainer.data.get("channels", 3), self.trainer.args.imgsz
        device = next(self.network.parameters()).device
        return [Call("", (torch.zeros(1, channels, side, side, device=device),), {})]

    def check(self, plan: PruningPlan) -> None:
        """Nothing of this trainer hinders: what could is refused before the first epoch."""

    def averages(self) -> Mapping[str, nn.Module]:
        """The moving average."""
        return {"ema": self.trainer.ema.ema}

    def averages_within(self, warn: bool = True) -> Mapping[str, str]:
        """None: the network is Ultralytics' own."""
        return {}

    def batches(
        self, calibration: Calibration, of_all_ranks: bool = False, read: Reader | None = None
    ) -> Iterator[CalibrationBatch]:
        """Images of the train split, evenly spread, letterboxed and not augmented; without their objects.

        Raises:
            CalibrationError: If they can't be loaded so.
        """
        trainer = self.trainer
        try:
            dataset = build_dataset(
                trainer.args,
                trainer.data,
                "train",
                calibration.batch_size,
                augment=False,
                rect=False,
                stretched=_stretched(trainer),
            )
        except ArgumentError as error:
            raise CalibrationError(f"There are no images to look at. {error}") from error
        number = min(len(dataset), calibration.batches * calibration.batch_size)
        picked = [position * len(dataset) // number for position in range(number)]
        for start in range(0, number, calibration.batch_size):
            examples = [dataset[position]["img"] for position in picked[start : start + calibration.batch_size]]
            images = torch.stack(examples).to(next(self.network.parameters()).device)
            images = images if images.is_floating_point() else images.float() / 255
            yield CalibrationBatch((images,))

    def precision(self) -> AbstractContextManager[None]:
        """Mixed precision where the trainer uses it."""
        device = next(self.network.parameters()).device
        return torch.autocast(device.type, enabled=bool(self.trainer.amp))

    def metrics(self) -> Mapping[str, float]:
        """What the last validation has found, and the fitness that Ultralytics makes of it."""
        found = {name: float(value) for name, value in (self.trainer.metrics or {}).items()}
        fitness = getattr(self.trainer, "fitness", None)
        return found if fitness is None else {**found, "fitness": float(fitness)}

    def forget_scores(self) -> None:
        """The dense network's scores do not measure the pruned one, and its `best.pt` must not stay."""
        trainer = self.trainer
        trainer.best_fitness = trainer.fitness = None
        stopper = copy(trainer.stopper)
        stopper.best_fitness, stopper.best_epoch = 0.0, trainer.epoch
        trainer.stopper = stopper

    def unwrap(self) -> None:
        """Drop cached anchors and cast copies of weights; a new average holds no tensor of the old shapes."""
        old = self.trainer.ema
        for network in (self.network, old.ema):
            forget_anchors_(network)
        torch.clear_autocast_cache()
        renewed = type(old)(self.network, updates=old.updates)
        renewed.ema, renewed.decay, renewed.enabled = old.ema, old.decay, old.enabled
        self.trainer.ema = renewed

    def wrap(self) -> None:
        """Nothing: the network runs on one device, as it is."""

    def checkpoint(self) -> str | None:
        """`last.pt`, once it was written."""
        return str(self.trainer.last) if self.trainer.last.exists() else None


def _stretched(trainer: Any) -> bool:
    """Whether the trainer's images are stretched to a square, as RT-DETR's are."""
    return type(trainer.train_loader.dataset).__name__ == "RTDETRDataset"
