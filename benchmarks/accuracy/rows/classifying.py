"""What rows share whose classifiers are trained here, on images in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.accuracy.rows.base import QUIET, Row, last_linear, restarted
from lit_prune import Repair

_WARMUP = 0.1  # of the run


class Classifier(LightningModule):
    """Cross-entropy and AdamW, whose rate rises for a tenth of the run and then falls along a cosine.

    Args:
        network: What is trained.
        lr: The highest rate.
    """

    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (_WARMUP * steps), (1 + math.cos(math.pi * step / steps)) / 2)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Classifying(Row):
    """Without a file of weights, the network is trained first; the measure is the mean over classes of what is found.

    Attributes:
        epochs: Of the first training.
        lr: Its highest rate.
        images, labels: For training.
        unseen, expected: For :meth:`score`, both in batches.
    """

    batch_size = 64
    epochs: int
    lr: float

    def __init__(
        self, network: nn.Module, weights: Path | None, known: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]
    ) -> None:
        # Depthwise convolutions are trained in two thirds of the time then.
        network = network.to(memory_format=torch.channels_last)
        self.images, self.labels = known
        self.unseen, self.expected = held[0].split(256), held[1]
        self.outputs = (last_linear(network),)
        if weights is not None and weights.exists():
            network.load_state_dict(torch.load(weights))
        else:
            network = self._trained(network, self.epochs, 0, self.lr)
            if weights is not None:
                torch.save(network.state_dict(), weights)
        self.network, self.image = network.eval(), self.unseen[0][:1]

    def augmented(self, images: Tensor) -> Tensor:
        """A batch for training, half of it mirrored."""
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)

    def batches(self, draw: int, number: int) -> list[list[Tensor]]:
        torch.manual_seed(draw)
        return [batch for batch, _ in zip(self._loader(), range(number), strict=False)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        number = repair.batches * repair.batch_size
        images = torch.cat([images for images, _ in self.batches(draw, -(-number // self.batch_size))])[:number]
        return [(part,) for part in images.split(repair.batch_size)]

    def inputs(self, batch: list[Tensor]) -> Tensor:
        return batch[0]

    def loss(self, network: nn.Module, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(network.eval()(images), labels)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        network.eval()
        found = torch.cat([network(images).argmax(1) for images in self.unseen]) == self.expected
        shares = [found[self.expected == label].float().mean() for label in self.labels.unique()]
        return float(sum(shares) / len(shares))

    def train(self, network: nn.Module, epochs: float, draw: int, callbacks: Sequence[Callback] = ()) -> nn.Module:
        return self._trained(network, epochs, draw, self.rate * self.lr, callbacks)

    def train_anew(self, network: nn.Module, epochs: float, draw: int) -> nn.Module:
        return self._trained(restarted(network, draw), self.epochs + epochs, draw, self.lr)

    def _trained(
        self, network: nn.Module, epochs: float, draw: int, lr: float, callbacks: Sequence[Callback] = ()
    ) -> nn.Module:
        seed_everything(draw, verbose=False)
        module, data = Classifier(network.train(), lr), self._loader()
        length = {"max_epochs": math.ceil(epochs), "max_steps": round(epochs * len(data))}
        Trainer(**length, callbacks=[*callbacks], **QUIET).fit(module, data)
        return module.network.eval()

    def _loader(self) -> DataLoader[Any]:
        def collated(pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
            images, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
            return [self.augmented(images).contiguous(memory_format=torch.channels_last), labels]

        data = TensorDataset(self.images, self.labels)
        return DataLoader(data, self.batch_size, shuffle=True, drop_last=True, collate_fn=collated)
