"""A YOLO of Ultralytics on the demo's scenes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from benchmarks.accuracy.rows.base import Row, still
from lit_prune import Repair
from lit_prune.data import DigitScenes, DigitScenesDataModule
from lit_prune.demo.runs import train
from lit_prune.demo.settings import Recipe
from lit_prune.yolo import LitYOLO

_QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Digits(Row):
    """The measure is mAP50-95 on scenes for validation; without weights, the network is trained as the demo does."""

    measure = "mAP50-95"
    outputs = ("Detect", "Attention")
    loss_scale = 32.0

    def __init__(self, network: str = "yolov8n.yaml", weights: Path | None = None, data: Path | None = None) -> None:
        self.name, self.recipe = network, Recipe(model=network)
        self.data = DigitScenesDataModule(scenes=self.recipe.scenes, image_size=self.recipe.image_size, batch_size=32)
        self.data.setup("fit")
        if weights is not None and weights.exists():
            self.module = LitYOLO(network, num_classes=DigitScenes.num_classes)
            self.module.model.load_state_dict(torch.load(weights))
        else:
            self.module = train(self.recipe, prune=False).detector
            if weights is not None:
                torch.save(self.module.model.state_dict(), weights)
        self.network = self.module.model.eval()
        self.image = torch.zeros(1, 3, self.recipe.image_size, self.recipe.image_size)
        self.trainer = Trainer(**_QUIET)

    def batches(self, draw: int, number: int) -> list[Any]:
        torch.manual_seed(draw)
        return [batch for batch, _ in zip(self.data.train_dataloader(), range(number), strict=False)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        number = repair.batches * repair.batch_size
        images = torch.cat([batch["img"] for batch in self.batches(draw, -(-number // 32))])[:number]
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
        return float(self.trainer.validate(module.eval(), self.data, verbose=False)[0]["val/map"])

    def train(self, network: nn.Module, epochs: int, draw: int, callbacks: Sequence[Callback] = ()) -> nn.Module:
        torch.manual_seed(draw)
        module = self._module(network.train())
        # Half the rate of the first training, after a twentieth of the run.
        module.lr, module.warmup_epochs = self.recipe.lr / 2, epochs / 20
        Trainer(max_epochs=epochs, limit_val_batches=0, callbacks=[*callbacks], **_QUIET).fit(module, self.data)
        return module.model.eval()

    def _module(self, network: nn.Module) -> LitYOLO:
        module = copy.deepcopy(self.module)
        module.model = network
        return module
