"""What the tests of the rules share: a network around a function, and the invariant on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph
from testing.invariant import check_invariant


class Between(nn.Module):
    """A 1x1 convolution to ``width`` channels, a function, and a 1x1 convolution to 4."""

    def __init__(self, function: Callable[..., Tensor], leaving: int, width: int = 12, branches: int = 1) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Conv2d(3, width, 1) for _ in range(branches))
        self.leave = nn.Conv2d(leaving, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(*(conv(x) for conv in self.enter)))


IMAGES = torch.zeros(2, 3, 6, 6)


def random_images(shape: tuple[int, ...] = (2, 3, 6, 6)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def exact(net: nn.Module, images: Tensor | None = None) -> ChannelGraph:
    """The graph of a network that holds the invariant."""
    check = check_invariant(net, random_images() if images is None else images)
    assert check.worst < 1e-4
    assert not check.graph.unsupported
    return check.graph


def sizes(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}
