"""A YOLO of Ultralytics on the demo's scenes."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.accuracy.rows.detecting import Detecting
from lit_prune.data import DigitScenes, DigitScenesDataModule
from lit_prune.demo.runs import train
from lit_prune.demo.settings import Recipe
from lit_prune.yolo import LitYOLO


class Digits(Detecting):
    """The measure is mAP50-95 on scenes for validation; without weights, the network is trained as the demo does."""

    measure = "mAP50-95"

    def __init__(self, network: str = "yolov8n.yaml", weights: Path | None = None, data: Path | None = None) -> None:
        self.name, recipe = network, Recipe(model=network)
        scenes = DigitScenesDataModule(scenes=recipe.scenes, image_size=recipe.image_size, batch_size=32)
        scenes.setup("fit")
        if weights is not None and weights.exists():
            module = LitYOLO(network, num_classes=DigitScenes.num_classes, lr=recipe.lr)
            module.model.load_state_dict(torch.load(weights))
        else:
            module = train(recipe).detector
            if weights is not None:
                torch.save(module.model.state_dict(), weights)
        super().__init__(module, scenes, recipe.image_size, 32, "val/map", recipe.epochs, recipe.warmup)
