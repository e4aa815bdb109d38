"""Kept widths of layers are multiples of `round_to`, also where a norm or a convolution takes a layer in pieces."""

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, plan_pruning
from lit_prune.select import MacsBudget

IMAGES = torch.zeros(1, 3, 12, 12)


def network(norm):
    return nn.Sequential(nn.Conv2d(3, norm.num_channels, 3), norm, nn.ReLU(), nn.Conv2d(norm.num_channels, 8, 3))


@pytest.mark.parametrize(("groups", "channels", "step"), [(1, 64, 8), (4, 32, 2), (8, 32, 1), (32, 128, 1), (3, 72, 8)])
@pytest.mark.parametrize("selection", ["uniform", "global", MacsBudget("global")])
def test_by_default_a_layer_before_a_group_norm_is_pruned_to_a_multiple_of_eight(groups, channels, step, selection):
    net = network(nn.GroupNorm(groups, channels))
    graph = ChannelGraph.trace(net, IMAGES)
    assert {group.step(8) for group in graph.groups} == {step}
    plan = plan_pruning(net, IMAGES, amount=0.5, selection=selection)
    width = len(plan.kept["0.weight"][0])
    assert 0 < width < channels
    assert not width % 8
    assert not width % groups


def test_a_grouped_convolution_too():
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=16), nn.Conv2d(64, 8, 1))
    for layer in ("0", "1"):
        others = [other for other in ("0", "1") if other != layer]
        plan = plan_pruning(net, IMAGES, amount=0.1, exclude=others)
        width = len(plan.kept[f"{layer}.weight"][0])
        # Of each of the 16 groups one, two or three of four channels stay.
        assert width in (16, 32, 48)


@pytest.mark.parametrize(
    ("groups", "width", "step"), [(8, 4, 1), (8, 8, 1), (8, 16, 8), (4, 12, 8), (3, 8, 8), (6, 4, 4)]
)
def test_groups_of_a_convolution_are_rounded_one_by_one_where_they_are_wide(groups, width, step):
    channels = groups * width
    net = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, groups=groups), nn.Conv2d(channels, 4, 1)
    )
    graph = ChannelGraph.trace(net, IMAGES)
    assert {group.step(8) for group in graph.groups} == {step}
    assert {group.step(1) for group in graph.groups} == {1}


def test_heads_of_an_attention_are_rounded_one_by_one():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    graph = ChannelGraph.trace(Net(), torch.zeros(2, 5, 64))
    assert {group.step(8) for group in graph.groups} == {8}


def test_pieces_that_are_read_one_by_one_are_rounded_one_by_one():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.head = nn.Conv2d(3, 48, 1), nn.Conv2d(24, 24, 1), nn.Conv2d(48, 4, 1)

        def forward(self, x):
            first, second = self.stem(x).chunk(2, 1)
            return self.head(torch.cat([first, self.inner(second)], 1))

    net = Halves()
    assert {group.step(8) for group in ChannelGraph.trace(net, IMAGES).groups} == {8}
    plan = plan_pruning(net, IMAGES, amount=0.4)
    assert not len(plan.kept["inner.weight"][1]) % 8


@pytest.mark.parametrize(("first", "second", "groups"), [(24, 48, 6), (32, 64, 12), (16, 48, 32)])
@pytest.mark.parametrize("selection", ["uniform", "macs", "isomorphic"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_layers_of_several_widths_before_one_norm_lose_equally_many(first, second, groups, selection, round_to):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, first, 3), nn.Conv2d(3, second, 3)
            self.norm, self.head = nn.GroupNorm(groups, first + second), nn.Conv2d(first + second, 4, 1)

        def forward(self, x):
            return self.head(self.norm(torch.cat([self.first(x), self.second(x)], 1)))

    net = Joined()
    graph = ChannelGraph.trace(net, IMAGES)
    assert len({group.step(round_to) for group in graph.groups}) == 1
    kept = plan_pruning(net, IMAGES, amount=0.25, selection=selection, round_to=round_to).kept if graph.groups else {}
    for name, width in (("first", first), ("second", second)):
        left = len(kept.get(f"{name}.weight", {}).get(0, range(width)))
        assert left == width or not left % round_to
