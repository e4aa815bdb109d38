"""Rules for patches, frequencies, deformable and bilinear layers, losses, and channels in front of what is split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from lit_prune import ChannelGraph
from tests.graph.tiny import Between, exact, random_images, sizes


def _carried(x: Tensor) -> Tensor:
    """Each pixel a mean of its neighbours."""
    patches = F.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:])
    return patches.mean(2)


def _filtered(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    parts = torch.cat([spectrum.real, spectrum.imag], 1).relu()
    return torch.fft.irfft2(torch.complex(*parts.chunk(2, 1)), s=x.shape[-2:], norm="ortho")


def _turned_back(x: Tensor) -> Tensor:
    spectrum = torch.fft.fft2(x)
    return torch.fft.ifft2(torch.polar(spectrum.abs(), spectrum.angle())).real


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "patches": _carried,
    "patches put together": lambda x: F.fold(F.unfold(x, 3, padding=1) * 2, x.shape[-2:], 3, padding=1),
    "frequencies": _filtered,
    "amount and angle": _turned_back,
    "pairs of numbers": lambda x: torch.view_as_complex(torch.view_as_real(torch.fft.fft2(x)).contiguous()).abs(),
    "a triangle": lambda x: x.tril() + torch.triu(x, 1),
    "turned": lambda x: torch.rot90(x, 1, (2, 3)),
}


@pytest.mark.parametrize("name", FREE)
def test_channels_pass_beside_space(name: str) -> None:
    assert sizes(exact(Between(FREE[name], 12))) == {"enter.0": 12}


def test_frequencies_of_channels_hold_them() -> None:
    graph = exact(Between(lambda x: torch.fft.ifft(torch.fft.fft(x, dim=1), dim=1).real, 12))
    assert "is transformed into frequencies" in graph.unprunable["enter.0"]


def test_gated_halves_lose_the_same() -> None:
    graph = exact(Between(lambda x: F.glu(x, 1), 6))
    assert graph["enter.0"].indices(("enter.0.weight", 0), [2]).tolist() == [2, 8]


@pytest.mark.parametrize(("groups", "offsets"), [(1, 1), (1, 2), (2, 1), (12, 2)])
def test_deformable_convolutions(groups: int, offsets: int) -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.offset = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 27 * offsets, 3, padding=1)
            self.deformed = DeformConv2d(12, 24, 3, padding=1, groups=groups)
            self.leave = nn.Conv2d(24, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            offset, mask = self.offset(x).split([18 * offsets, 9 * offsets], 1)
            return self.leave(self.deformed(self.enter(x), offset, mask.sigmoid()))

    graph = exact(Deformed())
    slots = {slot for group in graph.groups for slot in group.slots}
    assert {("enter.weight", 0), ("deformed.weight", 0), ("leave.weight", 1)} <= slots
    assert set(graph.unprunable) == {"offset", "leave"}
    assert "of a deformable convolution, in deformed" in graph.unprunable["offset"]


def test_bilinear_layers() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(6, 8), nn.Linear(6, 5), nn.Bilinear(8, 5, 7)
            self.leave = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.both(self.a(x), self.b(x)))

    assert sizes(exact(Both(), random_images((4, 6)))) == {"a": 8, "b": 5, "both": 7}


@pytest.mark.parametrize("unflatten", [nn.Unflatten(1, (8, 3, 3)), Rearrange("b (c h w) -> b c h w", h=3, w=3)])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.Upsample(scale_factor=2), nn.PReLU(8)])
def test_a_linear_layer_that_makes_an_image(unflatten: nn.Module, norm: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(6, 72), unflatten, norm, nn.ConvTranspose2d(8, 4, 2))
    graph = exact(net, random_images((2, 6)))
    assert sizes(graph) == {"0": 8}
    assert graph["0"].indices(("0.weight", 0), [1]).tolist() == [*range(9, 18)]


@pytest.mark.parametrize("order", ["c r s", "r s c"])
def test_a_shuffle_of_pixels_by_reshape(order: str) -> None:
    shuffle = Rearrange(f"b ({order}) h w -> b c (h r) (w s)", r=2, s=2)
    assert sizes(exact(Between(shuffle, 3))) == {"enter.0": 3}


LOSSES = {
    "mse_loss": F.mse_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "soft_margin_loss": F.soft_margin_loss,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "mean": F.l1_loss,
    "dot": lambda x, target: x.flatten() @ target.flatten(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_features_that_enter_a_loss_stay(name: str) -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.target, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.enter(x)
            return self.leave(features), LOSSES[name](features, self.target(x))

    graph = ChannelGraph.trace(Distilled(), random_images())
    assert not graph.unsupported
    for layer in ("enter", "target"):
        assert graph.unprunable[layer] in (f"enters {name}", f"{name} runs over it")


def test_a_loss_of_each_value_couples() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(x, y, reduction="none")

    assert exact(Between(function, 12, branches=2))["enter.0"].layers == ("enter.0", "enter.1")


def test_classes_of_a_loss_stay() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.nll_loss(self.leave(self.enter(x)), torch.zeros(len(x), dtype=torch.long))

    graph = ChannelGraph.trace(Classes(), random_images((4, 6)))
    assert sizes(graph) == {"enter": 8}
    assert graph.unprunable == {"leave": "enters nll_loss"}
