"""Numbers and small tensors that follow from a width make its channels unprunable, whatever operation takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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

    def __init__(self, function: Callable[[Tensor], Tensor], reads: bool = False) -> None:
        super().__init__()
        self.function, self.reads = function, reads
        self.enter, self.leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.reads and float(x.mean()) > 1e9:
            # Without values this can't be told: they are there from now on.
            raise ValueError("too bright")
        return self.leave(self.function(self.enter(x)))


def _copied(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape, device=x.device)
    out[:] = x
    return out


def _noise(x: Tensor) -> Tensor:
    return torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0)).to(x)[:, None, None]


def _attention(x: Tensor) -> Tensor:
    q = x.flatten(2).transpose(1, 2)[:, None]
    return F.scaled_dot_product_attention(q, q, q, scale=1 / x.shape[1])[:, 0].transpose(1, 2).reshape(x.shape)


def _vectors(x: Tensor) -> Tensor:
    return F.normalize(x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]), dim=2).flatten(1, 2)


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
    "a wide tensor": lambda x: x * torch.full((x.shape[1],), 1 / x.shape[1], device=x.device)[:, None, None],
    "a grid": lambda x: x * (torch.arange(64.0, device=x.device).view(8, 8) / x.shape[1]),
    "a grid filled later": lambda x: x * torch.empty(8, 8, device=x.device).fill_(1 / x.shape[1]),
    "a range of numbers": lambda x: x + torch.linspace(0, x.shape[1], 8, device=x.device).sin() * x.new_ones(8, 1),
    "a large grid": lambda x: x * torch.ones(200, 200, device=x.device).mul(x.shape[1])[:8, :8],
    "a grid of NumPy's": lambda x: x * torch.from_numpy(np.full((8, 8), 1.0 / x.shape[1])).to(x),
    "a shape in a tensor": lambda x: x / torch.as_tensor(x.shape, dtype=x.dtype, device=x.device)[1],
    "a new tensor of numbers": lambda x: x / x.new_tensor([float(x.shape[1])]),
    "a quotient of what was written": lambda x: _copied(x) / x.shape[1],
    "an epsilon of a norm": lambda x: F.rms_norm(x, x.shape[2:], eps=1 / x.shape[1]),
    "a scale of an attention": _attention,
    "noise of its own generator": lambda x: x * _noise(x),
    "a softplus": lambda x: F.softplus(x, beta=x.shape[1] / 8),
    "a threshold": lambda x: F.threshold(x, x.shape[1] / 32, 0.0),
}

FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "numbers of its own": lambda x: F.leaky_relu(x / 3, 0.3).clamp(max=0.7),
    "a spatial size": lambda x: F.avg_pool2d(x, x.shape[2] // 4) / x.shape[3],
    "a shape of it": lambda x: x + torch.zeros(x.shape[0], 1, *x.shape[2:], device=x.device),
    "a reshape": lambda x: x.reshape(x.shape[0], x.shape[1], -1).view(x.shape),
    "a mean by hand": lambda x: x - x.flatten(2).sum(-1)[..., None, None] / (x.shape[2] * x.shape[3]),
    "a fixed grid": lambda x: x * torch.linspace(0, 1, 64, device=x.device).view(8, 8) / 3,
    "zeros of it": lambda x: x + torch.zeros_like(x) * 2,
    "noise": lambda x: x * torch.rand(x.shape[1], 1, 1, device=x.device),
    "a constant tensor": lambda x: x * torch.tensor([0.5]),
}


@pytest.mark.parametrize("reads", [False, True], ids=["without values", "with values"])
@pytest.mark.parametrize("name", FOLLOW)
def test_channels_stay_where_a_number_follows_their_width(name: str, reads: bool) -> None:
    network = Between(FOLLOW[name], reads)
    graph = ChannelGraph.trace(network, IMAGES)
    assert check_invariant(network, IMAGES, graph=graph).worst < 1e-4
    assert "enter" in graph.unprunable


@pytest.mark.parametrize("reads", [False, True], ids=["without values", "with values"])
@pytest.mark.parametrize("name", FREE)
def test_other_numbers_hold_nothing_back(name: str, reads: bool) -> None:
    network = Between(FREE[name], reads)
    graph = ChannelGraph.trace(network, IMAGES)
    assert [group.name for group in graph.groups] == ["enter"]
    assert name == "noise" or check_invariant(network, IMAGES, graph=graph).worst < 1e-4


@pytest.mark.parametrize("left", range(1, 9))
def test_of_all_but_a_few_channels_numbers_still_agree(left: int) -> None:
    network = Between(lambda x: x * torch.ones(x.shape[1], 1, 1, device=x.device) + x.new_zeros(1, x.shape[1], 1, 1))
    graph = ChannelGraph.trace(network, IMAGES)
    graph.rehearse(graph.plan({"enter": range(left, 16)}))


def test_vectors_of_a_fixed_length_go_whole() -> None:
    # If of two vectors of length two one channel each went, the two that are left would be one vector.
    network = Between(_vectors)
    network.enter, network.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    graph = ChannelGraph.trace(network, IMAGES)
    (group,) = graph.groups
    assert group.indices(("enter.weight", 0), [1]).tolist() == [2, 3]
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
