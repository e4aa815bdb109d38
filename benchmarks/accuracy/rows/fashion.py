"""The ResNet of CIFAR on small pictures of clothes."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy.rows.classifying import Classifying


class Fashion(Classifying):
    """The measure is the accuracy on the images for testing, which are a thousand of each class.

    Args:
        network: `resnet20`, or another depth that is 2 more than a multiple of 6.
        weights: Where they are kept.
        data: A folder with the four files of Fashion-MNIST.
    """

    measure = "accuracy"
    epochs, lr = 6, 3e-3

    def __init__(
        self,
        network: str = "resnet20",
        weights: Path | None = None,
        data: Path = Path("/usr/share/datasets/fashion-mnist"),
    ) -> None:
        self.name = network
        if not data.is_dir():
            raise FileNotFoundError(f"{data} is missing: install Debian's dataset-fashion-mnist, or give --data.")
        torch.manual_seed(0)
        known, held = (
            ((_read(data, f"{part}-images-idx3").float()[:, None] - 73) / 90, _read(data, f"{part}-labels-idx1").long())
            for part in ("train", "t10k")
        )
        # A third is enough for the minutes that this is to take.
        super().__init__(
            ResNet(int(network.removeprefix("resnet"))), weights, (known[0][:20000], known[1][:20000]), held
        )


def _read(folder: Path, name: str) -> Tensor:
    raw = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
    # The fourth byte is the number of dimensions; their sizes follow, four bytes each.
    shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8).reshape(shape)


class ResNet(nn.Sequential):
    """Three stages of 16, 32 and 64 channels, as in He et al., 2016, section 4.2, for images of one channel.

    Shortcuts are projected where the shape changes.
    """

    def __init__(self, depth: int = 20) -> None:
        blocks = []
        for before, width in ((16, 16), (16, 32), (32, 64)):
            blocks += [_Block(before, width, width // before)]
            blocks += [_Block(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
        super().__init__(
            *_conv(1, 16, 3, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        )


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(before, width, 3, stride), nn.ReLU(), *_conv(width, width, 3, 1))
        self.shortcut = nn.Sequential(*(_conv(before, width, 1, stride) if stride > 1 else ()))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(before: int, width: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)]
