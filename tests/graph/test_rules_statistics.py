"""Statistics over channels that a forward takes by operations of its own: those of the channels that are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph, shrink_
from tests.graph.tiny import IMAGES, Between, exact, random_images, sizes


def _variance_of_squares(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    return (x - mean) * torch.rsqrt((x * x).mean(1, keepdim=True) - mean**2 + 1e-5)


def _without_keepdim(x: Tensor) -> Tensor:
    centred = x - x.mean(1)[:, None]
    return centred / centred.square().mean(1).add(1e-5).sqrt().unsqueeze(1)


def _var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def _product(x: Tensor) -> Tensor:
    return x / (torch.einsum("nchw,nchw->nhw", x, x) + 1e-5).sqrt()[:, None]


def _response(x: Tensor) -> Tensor:
    length = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + x * length / (length.mean(1, keepdim=True) + 1e-6)


def _extremes(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    return (x - low) / (high - low + 1e-3)


def _gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean(1, keepdim=True) + torch.max(x, dim=1, keepdim=True)[0] + x.min(1, True).values)


def _not_zero_when_masked(x: Tensor) -> Tensor:
    x = x.sigmoid() + 1
    return x / x.sum(1, keepdim=True)


def _distances(x: Tensor) -> Tensor:
    tokens = x.sigmoid().flatten(2).transpose(1, 2)
    return (torch.cdist(tokens, tokens).softmax(-1) @ tokens).transpose(1, 2).reshape(x.shape)


def _behind_a_norm(x: Tensor) -> Tensor:
    x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2])
    return (x - x.mean(-1, keepdim=True)).permute(0, 3, 1, 2)


def _behind_groups(x: Tensor) -> Tensor:
    x = F.group_norm(x, x.shape[1])
    return x - x.mean(1, keepdim=True)


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "mean, expanded": lambda x: x - x.mean(1, keepdim=True).expand_as(x),
    "mean, repeated": lambda x: x - x.mean(1, keepdim=True).repeat(1, x.shape[1], 1, 1),
    "standard deviation": lambda x: x / (x.std(1, keepdim=True) + 1e-5),
    "variance of squares": _variance_of_squares,
    "without keepdim": _without_keepdim,
    "var_mean": _var_mean,
    "over space as well": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-5),
    "product with itself": _product,
    "unit length": lambda x: F.normalize(x, dim=1),
    "sum of amounts": lambda x: F.normalize(x, p=1, dim=1),
    "torch.linalg": lambda x: x / torch.linalg.norm(x, dim=1, keepdim=True),
    "cosine": lambda x: x * F.cosine_similarity(x, x.roll(1, 2), dim=1)[:, None],
    "response of each channel": _response,
    "extremes": _extremes,
    "gate": _gate,
    "not zero when masked": _not_zero_when_masked,
    "distances": _distances,
    "behind a norm of torch": _behind_a_norm,
    "behind groups of torch": _behind_groups,
    "row by row": lambda x: torch.stack([image - image.mean(0, keepdim=True) for image in x]),
}


@pytest.mark.parametrize("name", FREE)
def test_statistics_over_channels(name: str) -> None:
    assert sizes(exact(Between(FREE[name], 12))) == {"enter.0": 12}


@pytest.mark.parametrize("dims", [1, 3])
def test_of_other_ranks(dims: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
            self.enter, self.leave = conv(3, 12, 1), conv(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(_variance_of_squares(self.enter(x)))

    assert sizes(exact(Net(), random_images((2, 3, *[4] * dims)))) == {"enter": 12}


class ByHand(nn.Module):
    """A LayerNorm over dimension 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        values = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        return values * self.weight[:, None, None] + self.bias[:, None, None]


def test_a_norm_by_hand_is_that_of_torch_before_and_after() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), ByHand(12), nn.Conv2d(12, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 12}
    shrink_(net, graph.plan({"0": [0, 3, 4]}))
    values = net[0](random_images())
    norm = nn.LayerNorm(9)
    norm.load_state_dict(net[1].state_dict())
    assert torch.allclose(net[1](values), norm(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize("spatial", [False, True])
def test_groups_by_hand_lose_equally_many(spatial: bool) -> None:
    def function(x: Tensor) -> Tensor:
        shape = (x.shape[0], 3, x.shape[1] // 3, *x.shape[2:]) if spatial else (x.shape[0], 3, -1)
        over = (2, 3, 4) if spatial else 2
        groups = x.view(shape)
        return ((groups - groups.mean(over, keepdim=True)) / (groups.std(over, keepdim=True) + 1e-5)).view(x.shape)

    graph = exact(Between(function, 12))
    assert sizes(graph) == {"enter.0": 4, "enter.0#2": 4, "enter.0#3": 4}
    assert len(graph["enter.0"].balanced) == 3


def test_heads_of_unit_length_stay_apart() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.ModuleList(nn.Linear(6, 16) for _ in range(3)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (each(x).unflatten(2, (4, -1)).transpose(1, 2) for each in self.qkv)
            scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-1, -2)
            return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    graph = exact(Cosine(), random_images((2, 5, 6)))
    assert {group.size for group in graph.groups} == {4}
    assert not {"qkv.0", "qkv.1", "qkv.2"} & graph.unprunable.keys()


def test_an_angle_between_features_and_classes() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classes = nn.Linear(6, 12), nn.Linear(12, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return 16 * F.linear(F.normalize(self.body(x)), F.normalize(self.classes.weight))

    assert sizes(exact(Head(), random_images((4, 6)))) == {"body": 12}


def test_a_weight_standardised_by_hand() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            over = (1, 2, 3)
            weight = (self.weight - self.weight.mean(over, keepdim=True)) / self.weight.std(over, keepdim=True)
            return F.conv2d(x, weight, self.bias)

    # Behind a sigmoid a masked channel is no zero.
    net = nn.Sequential(Standardised(3, 12, 1), nn.Sigmoid(), Standardised(12, 8, 3), nn.Conv2d(8, 4, 1))
    assert sizes(exact(net)) == {"0": 12, "2": 8}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.sum(1, keepdim=True) / x.shape[1],
        lambda x: x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.5,
        lambda x: x / torch.ones(x.shape[1], 40, 40).sum(),
        lambda x: x / torch.rand(1, x.shape[1], 1, 1).expand(2, -1, 20, 20).sum((1, 2, 3), keepdim=True),
    ],
)
def test_a_number_of_channels_that_is_not_theirs_to_know(function: Callable[[Tensor], Tensor]) -> None:
    graph = ChannelGraph.trace(Between(function, 12), IMAGES)
    assert graph.groups == ()
    assert "computes with a number that depends on a width" in graph.unprunable["enter.0"]
