"""Photographs of solar cells, and which of them are defective."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from benchmarks.accuracy.rows.base import last_linear
from benchmarks.accuracy.rows.classifying import Classifying
from benchmarks.accuracy.rows.packages import folder_of, pretrained


class Cells(Classifying):
    """A network pretrained on ImageNet, fine-tuned to tell cells that are likely defective; the measure is balanced.

    The photographs are Buerhop-Lutz et al., 2018, under CC BY-NC-SA 4.0. A quarter of either class is held out.

    Args:
        network: A MobileNet of torchvision, or `efficientnet_lite0`.
        weights: Where they are kept once it is fine-tuned.
        data: Not used.
    """

    measure = "balanced accuracy"
    size, batch_size = 128, 32
    epochs, lr = 5, 1e-3

    def __init__(self, network: str = "mobilenet_v2", weights: Path | None = None, data: Path | None = None) -> None:
        self.name = network
        torch.manual_seed(0)
        classifier = pretrained(network)
        name = last_linear(classifier)
        # Two classes in place of a thousand.
        classifier.set_submodule(name, nn.Linear(classifier.get_submodule(name).in_features, 2))
        images, labels = self._read(folder_of("elpv_dataset") / "data")
        order = torch.randperm(len(labels))
        parts = [order[labels[order] == label] for label in (0, 1)]
        held = torch.cat([part[: len(part) // 4] for part in parts])
        known = torch.cat([part[len(part) // 4 :] for part in parts])
        super().__init__(classifier, weights, (images[known], labels[known]), (images[held], labels[held]))

    def augmented(self, images: Tensor) -> Tensor:
        """Half of the batch upside down, too."""
        images = super().augmented(images)
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(2), images)

    def _read(self, folder: Path) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for line in (folder / "labels.csv").read_text().splitlines():
            path, probability, _ = line.split()
            image = Image.open(folder / path).convert("L").resize((self.size, self.size), Image.Resampling.BOX)
            images.append(F.to_image(image))
            labels.append(int(float(probability) >= 0.5))
        pixels = torch.stack(images).float()
        return ((pixels - pixels.mean()) / pixels.std()).expand(-1, 3, -1, -1), torch.tensor(labels)
