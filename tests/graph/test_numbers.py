"""Numbers and small tensors that follow from a width make its channels unprunable, whatever operation takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph
from lit_prune.errors import TraceError
from testing.invariant import check_invariant

IMAGES = torch.rand(2, 3, 8, 8)


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.enter, self.leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(self.enter(x)))


def _loop(x: Tensor) -> Tensor:
    for _ in range(x.shape[1] // 4):
        x = torch.tanh(x)
    return x


FOLLOW: dict[str, Callable[[Tensor], Tensor]] = {
    "a quotient": lambda x: x / x.shape[1],
    "a tensor": lambda x: x / torch.tensor(float(x.shape[1])),
    "a tensor by keyword": lambda x: x * torch.tensor(data=[x.shape[1] / 8]),
    "a sum of ones": lambda x: x / torch.ones(x.shape[1], device=x.device).sum(),
    "a sum of ones like it": lambda x: x / torch.ones_like(x[0, :, 0, 0]).sum(),
    "a new tensor of it": lambda x: x * x.new_full((1,), x.shape[1] ** -0.5),
    "a range": lambda x: x * torch.arange(x.shape[1], device=x.device).float().mean(),
    "a slope": lambda x: F.leaky_relu(x, 1 / x.shape[1]),
    "a bound": lambda x: x.clamp(max=x.shape[1] / 32),
    "a weight": lambda x: torch.lerp(x, x * x, 1 / x.shape[1]),
    "a power": lambda x: x.abs() ** (x.shape[1] / 16),
    "an epsilon": lambda x: F.normalize(x.flatten(2), dim=2, eps=x.shape[1] / 4).view_as(x),
    "a kernel": lambda x: F.avg_pool2d(x, 1 + 2 * (x.shape[1] // 8), 1, x.shape[1] // 8),
    "a dilation": lambda x: F.max_pool2d(x, 3, 1, x.shape[1] // 16, x.shape[1] // 16),
    "a shift": lambda x: torch.roll(x, x.shape[1] // 4, 2),
    "a place": lambda x: x + x[:, :, x.shape[1] // 4, None],
    "a size": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, x.shape[1] // 4), size=8),
    "a loop": _loop,
    "a condition": lambda x: torch.sin(x) if x.shape[1] > 15 else torch.cos(x),
    "a softplus": lambda x: F.softplus(x, beta=x.shape[1] / 8),
    "a threshold": lambda x: F.threshold(x, x.shape[1] / 32, 0.0),
}

FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "numbers of its own": lambda x: F.leaky_relu(x / 3, 0.3).clamp(max=0.7),
    "a spatial size": lambda x: F.avg_pool2d(x, x.shape[2] // 4) / x.shape[3],
    "a shape of it": lambda x: x + torch.zeros(x.shape[0], 1, *x.shape[2:], device=x.device),
    "a reshape": lambda x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape),
    "a mean by hand": lambda x: x - x.flatten(2).sum(-1)[..., None, None] / (x.shape[2] * x.shape[3]),
    "a constant tensor": lambda x: x * torch.tensor([0.5]),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_channels_stay_where_a_number_follows_their_width(name: str) -> None:
    network = Between(FOLLOW[name])
    graph = ChannelGraph.trace(network, IMAGES)
    assert check_invariant(network, IMAGES, graph=graph).worst < 1e-4
    assert "enter" in graph.unprunable


@pytest.mark.parametrize("name", FREE)
def test_other_numbers_hold_nothing_back(name: str) -> None:
    network = Between(FREE[name])
    graph = ChannelGraph.trace(network, IMAGES)
    assert [group.name for group in graph.groups] == ["enter"]
    assert check_invariant(network, IMAGES, graph=graph).worst < 1e-4


class Scores(nn.Module):
    """Attention written by hand: what is scaled by the root of a width carries no channel any more."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 1)
        self.q, self.k, self.v = (nn.Conv2d(16, 16, 1) for _ in range(3))
        self.leave = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        return self.leave((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


def test_a_scale_of_scores_counts_though_no_channel_is_left_in_them() -> None:
    network = Scores()
    graph = ChannelGraph.trace(network, IMAGES)
    assert {"q", "k"} <= graph.unprunable.keys()
    assert [group.name for group in graph.groups] == ["enter", "v"]
    assert check_invariant(network, IMAGES, graph=graph).worst < 1e-4


def test_a_condition_that_only_much_pruning_meets_is_met_in_the_rehearsal() -> None:
    network = Between(lambda x: torch.sin(x) if x.shape[1] > 5 else torch.cos(x))
    graph = ChannelGraph.trace(network, IMAGES)
    graph.rehearse(graph.plan({"enter": range(8)}))
    with pytest.raises(TraceError, match="computes with a number that depends on a width"):
        graph.rehearse(graph.plan({"enter": range(12)}))
