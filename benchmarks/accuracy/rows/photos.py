"""Classifiers that are really pretrained, judged by photographs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from benchmarks.accuracy.rows.base import Row, last_linear
from benchmarks.accuracy.rows.packages import photographs, pretrained
from lit_prune import Repair


class Photos(Row):
    """A classifier pretrained on ImageNet; the measure is agreement with it on unseen photographs.

    Args:
        network: A MobileNet of torchvision, or `efficientnet_lite0`.
        weights: Others than ImageNet's.
        data: Not used.
    """

    measure = "agreement"
    crops, size = 16, 160

    def __init__(self, network: str = "mobilenet_v2", weights: Path | None = None, data: Path | None = None) -> None:
        self.name = network
        self.network = pretrained(network)
        if weights is not None:
            self.network.load_state_dict(torch.load(weights))
        self.network.eval()
        self.outputs = (last_linear(self.network),)
        is_lite = network == "efficientnet_lite0"
        normalised = ([0.498] * 3, [0.502] * 3) if is_lite else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(self.size, scale=(0.25, 1)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(*normalised),
            ]
        )
        images = photographs()
        self.seen, unseen = images[: len(images) // 2], images[len(images) // 2 :]
        torch.manual_seed(0)
        self.unseen = torch.stack([self.transform(image) for image in unseen for _ in range(self.crops)])
        self.image = self.unseen[:1]
        with torch.no_grad():
            self.expected = self.network(self.unseen).argmax(1)

    def batches(self, draw: int, number: int) -> list[Tensor]:
        torch.manual_seed(draw)
        # One photograph after the other: what is held out of a fit is of others than what is fitted.
        crops = torch.stack([self.transform(image) for image in self.seen for _ in range(self.crops)])
        return [crops[torch.arange(start, len(crops), number)] for start in range(number)]

    def calibration(self, draw: int, repair: Repair) -> list[tuple[Tensor]]:
        return [(batch,) for batch in self.batches(draw, repair.batches)]

    def inputs(self, batch: Tensor) -> Tensor:
        return batch

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        answers = network.eval()(batch)
        with torch.no_grad():
            expected = self.network(batch).argmax(1)
        return F.cross_entropy(answers, expected)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        return float((network.eval()(self.unseen).argmax(1) == self.expected).float().mean())
