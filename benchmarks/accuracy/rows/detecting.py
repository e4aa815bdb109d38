"""What rows share whose networks are Ultralytics' detectors, trained here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn
from ultralytics.nn.modules import Detect

from benchmarks.accuracy.rows.base import QUIET, Row, restarted, still
from lit_prune import Repair
from lit_prune.yolo import LitYOLO


class Detecting(Row):
    """The measure is one of those that the validation logs.

    Args:
        module: The network, trained.
        data: Its data, set up to fit.
        size: Height and width of an image.
        batch_size: Of the data.
        logged: The measure's name in the log.
        epochs: Of the first training.
        warmup: The part of it in which its rate rose.
    """

    outputs = ("Detect", "Attention")

    def __init__(
        self,
        module: LitYOLO,
        data: LightningDataModule,
        size: int,
        batch_size: int,
        logged: str,
        epochs: int,
        warmup: float,
    ) -> None:
        self.module, self.data, self.logged, self.epochs, self.warmup = module, data, logged, epochs, warmup
        self.network = module.model.eval()
        self.image = torch.zeros(1, 3, size, size)
        # The loss is a sum over images.
        self.loss_scale = float(batch_size)
        self.trainer = Trainer(**QUIET)

    def batches(self, draw: int, number: int) -> list[Any]:
        # Ultralytics' augmentation draws from all generators that there are.
        seed_everything(draw, verbose=False)
        some = zip(self.data.train_dataloader(), range(number), strict=False)
        return [self.data.on_after_batch_transfer(batch, 0) for batch, _ in some]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        number = repair.batches * repair.batch_size
        images = torch.cat([batch["img"] for batch in self.batches(draw, -(-number // int(self.loss_scale)))])[:number]
        return [(part,) for part in images.split(repair.batch_size)]

    def inputs(self, batch: Any) -> Tensor:
        return batch["img"]

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        network.train()
        still(network)
        parts, _ = network.loss(batch, self.module.task.enter(network, batch))
        return parts.sum()

    def score(self, network: nn.Module) -> float:
        module = self._module(network)
        return float(self.trainer.validate(module.eval(), self.data, verbose=False)[0][self.logged])

    def train(self, network: nn.Module, epochs: float, draw: int, callbacks: Sequence[Callback] = ()) -> nn.Module:
        # The rate is reached after a twentieth of the run.
        return self._trained(network, epochs, draw, self.rate * self.module.lr, 0.05, callbacks)

    def train_anew(self, network: nn.Module, epochs: float, draw: int) -> nn.Module:
        for module in restarted(network, draw).modules():
            if isinstance(module, Detect):
                module.bias_init()
        return self._trained(network, self.epochs + epochs, draw, self.module.lr, self.warmup)

    def _trained(
        self,
        network: nn.Module,
        epochs: float,
        draw: int,
        lr: float,
        warmup: float,
        callbacks: Sequence[Callback] = (),
    ) -> nn.Module:
        if epochs != int(epochs):
            raise ValueError(f"A YOLO's schedule goes by whole epochs, but these are {epochs}.")
        seed_everything(draw, verbose=False)
        module = self._module(network.train())
        module.lr, module.warmup_epochs = lr, warmup * epochs
        Trainer(max_epochs=int(epochs), limit_val_batches=0, callbacks=[*callbacks], **QUIET).fit(module, self.data)
        return module.model.eval()

    def _module(self, network: nn.Module) -> LitYOLO:
        module = copy.deepcopy(self.module)
        module.model = network
        return module
