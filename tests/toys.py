"""Small LightningModules and data for the tests of what happens inside a Trainer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_prune import ChannelGraph
from lit_prune.criteria import Criterion, Evidence
from testing.training import quiet_trainer

LIGHTNING_AVERAGES = hasattr(pl.callbacks, "WeightAveraging")
"""Lightning has them from 2.6 on."""


class Residual(nn.Module):
    """A convolution beside an identity: its channels are coupled with those that enter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        Residual(width),
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4)),
    )


class Classifier(pl.LightningModule):
    """A classifier as a user would write it; nothing in it knows of pruning."""

    def __init__(self, width: int = 16, optimizer: str = "sgd", **options: Any) -> None:
        super().__init__()
        self.net = network(width)
        self.optimizer = optimizer
        self.options = options
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizers()[self.optimizer](self.parameters(), **self.options)


def optimizers() -> dict[str, Any]:
    return {
        "sgd": lambda p, **o: torch.optim.SGD(p, **{"lr": 0.05, "momentum": 0.9, **o}),
        "adam": lambda p, **o: torch.optim.Adam(p, **{"lr": 1e-3, "amsgrad": True, **o}),
        "adamw": lambda p, **o: torch.optim.AdamW(p, **{"lr": 1e-3, **o}),
        "adafactor": lambda p, **o: torch.optim.Adafactor(p, **{"lr": 1e-3, **o}),
        "rmsprop": lambda p, **o: torch.optim.RMSprop(p, **{"lr": 1e-3, "momentum": 0.9, **o}),
        "lbfgs": lambda p, **o: torch.optim.LBFGS(p, **o),
    }


def loader(examples: int = 24, batch_size: int = 8, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(examples, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (examples,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=shuffle)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return quiet_trainer(*callbacks, **{"max_epochs": 4, **options})


def fitted(
    *callbacks: pl.Callback, kind: type[pl.LightningModule] = Classifier, ckpt_path: Any = None, **options: Any
) -> Any:
    """A module of a kind, trained from the same weights each time; checkpoints are written where a callback does."""
    torch.manual_seed(0)
    module = kind()
    saves = any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks)
    trainer(*callbacks, enable_checkpointing=saves, **options).fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return module


def weight_averaging() -> list[pl.Callback]:
    """Lightning's average of the weights, where it has one."""
    return [pl.callbacks.WeightAveraging()] if LIGHTNING_AVERAGES else []


def widths(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


class Answers(Criterion):
    """Scores by what it is given, or by what that returns."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, evidence: Evidence) -> Any:
        return self.answer(evidence) if callable(self.answer) else self.answer


def two_groups() -> Evidence:
    """Of a network whose groups ``0`` and ``2`` have eight channels and six."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 9, 9))
    return Evidence(network, graph, graph.groups)
