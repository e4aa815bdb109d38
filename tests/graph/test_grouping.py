"""From labels to groups: names, members and reasons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph

IMAGES = torch.zeros(1, 3, 4, 4)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head(x + self.inner(x))


def test_groups_come_in_forward_order_with_their_layers() -> None:
    graph = ChannelGraph.trace(Residual(), IMAGES)
    assert [(group.name, group.size, group.layers) for group in graph.groups] == [
        ("stem", 8, ("stem", "inner.1")),
        ("inner.0", 6, ("inner.0",)),
    ]


def test_slots_of_a_group() -> None:
    group = ChannelGraph.trace(Residual(), IMAGES)["stem"]
    norm = {(f"norm.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    layers = {("stem.weight", 0), ("stem.bias", 0), ("inner.1.weight", 0), ("inner.1.bias", 0)}
    assert set(group.slots) == norm | layers | {("inner.0.weight", 1), ("head.weight", 1)}
    assert group.indices(("head.weight", 1), [5, 2]).tolist() == [2, 5]


def test_one_layer_that_makes_two_groups() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.conv(x).chunk(2, 1)
            return self.a(a), self.b(b)

    graph = ChannelGraph.trace(Halves(), IMAGES)
    assert [group.name for group in graph.groups] == ["conv", "conv#2"]
    assert [group.balanced for group in graph.groups] == [("conv", "conv#2")] * 2
    assert graph["conv#2"].indices(("conv.weight", 0), [0, 3]).tolist() == [4, 7]


def test_a_later_group_is_named_after_a_layer_of_its_own() -> None:
    class Shared(nn.Module):
        """Half of what `conv` makes is added to what `other` makes."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.conv(x).chunk(2, 1)
            return self.out(torch.cat([a, b + self.other(x)], 1))

    graph = ChannelGraph.trace(Shared(), IMAGES)
    assert [group.name for group in graph.groups] == ["conv", "other"]
    assert graph["other"].layers == ("conv", "other")


def test_an_only_channel_stays_and_the_reason_is_given() -> None:
    class Whole(nn.Module):
        """All channels of `a` hang on each other: its map is flattened, and joined with what runs the other way."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return self.out(a + torch.stack([b[:, 0], b[:, 0], b[:, 0], b[:, 0]], 1))

    graph = ChannelGraph.trace(Whole(), torch.zeros(2, 6))
    assert graph.groups == ()
    assert set(graph.unprunable) == {"a", "b", "out"}


def test_every_layer_is_in_a_group_or_frozen() -> None:
    graph = ChannelGraph.trace(Residual(), IMAGES)
    named = {layer for group in graph.groups for layer in group.layers} | set(graph.unprunable)
    assert named == {"stem", "inner.0", "inner.1", "head"}
    assert all(graph.unprunable.values())
