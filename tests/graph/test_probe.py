"""What no trace shows, a shrunk copy does: integers that modules remember."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, shrink_
from lit_prune.graph import probe, register_ties
from lit_prune.graph.subject import InPlace
from lit_prune.modules import registry
from lit_prune.modules.registry import register_attributes
from testing.invariant import check_invariant

IMAGES = torch.zeros(2, 3, 4, 4)


class Remembers(nn.Module):
    """Its forward needs the width that it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Conv2d(3, 8, 1)
        self.conv = nn.Conv2d(8, 6, 1)
        self.out = nn.Linear(6 * 16, 4)
        self.width = 6

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(self.free(x)).view(len(x), self.width * 16))


@pytest.fixture
def _tables() -> Iterator[None]:
    """The tables as they were."""
    tables = (registry._ATTRIBUTES, registry.TIES, registry.WHOLE)
    before = [dict(table) for table in tables]
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)  # type: ignore[arg-type]


def test_a_remembered_width_freezes_its_group_and_no_other() -> None:
    graph = ChannelGraph.trace(Remembers(), IMAGES)
    assert [group.name for group in graph.groups] == ["free"]
    assert "can't be narrowed" in graph.unprunable["conv"]
    assert "shape '[2, 96]' is invalid" in graph.unprunable["conv"]


@pytest.mark.usefixtures("_tables")
def test_registered_attributes_free_it() -> None:
    @register_attributes(Remembers)
    def _remembers(module: Any) -> None:
        module.width = module.conv.out_channels

    check = check_invariant(Remembers(), torch.randn(2, 3, 4, 4))
    assert check.worst < 1e-4
    assert [group.name for group in check.graph.groups] == ["free", "conv"]


def test_several_that_fail_are_all_found() -> None:
    net = nn.Sequential(Remembers(), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.Upsample(4), Remembers())
    graph = ChannelGraph.trace(net, IMAGES)
    assert [group.name for group in graph.groups if "free" in group.name] == ["0.free", "4.free"]
    assert {"0.conv", "4.conv"} <= set(graph.unprunable)


def test_a_constant_that_follows_from_a_width_freezes_it() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.out(x * x.shape[1] ** -0.5)

    graph = ChannelGraph.trace(Scaled(), IMAGES)
    assert graph.groups == ()
    assert "depends on a width" in graph.unprunable["conv"]


def test_a_slice_of_a_remembered_place_freezes_what_lies_before() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 9, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv(x)
            return self.a(x[:, :4]), self.b(x[:, 4:])

    check = check_invariant(Slices(), torch.randn(2, 3, 4, 4))
    assert check.worst < 1e-4
    # What comes last may lose channels; what comes before it would let others slip into its place.
    assert [group.size for group in check.graph.groups] == [5]


class WidthOfAnother(nn.Module):
    """Reads a width off its input and gives it to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.conv(x).flatten(2).view(x.shape))


def test_a_width_of_another_tensor_freezes_both() -> None:
    graph = ChannelGraph.trace(WidthOfAnother(), IMAGES)
    assert graph.groups == ()
    assert "can't be narrowed" in graph.unprunable["conv"]


@pytest.mark.usefixtures("_tables")
def test_registered_ties_free_it() -> None:
    @register_ties(WidthOfAnother)
    def _ties(module: Any) -> Any:
        yield ("conv.weight", 1), ("out.weight", 1)

    check = check_invariant(WidthOfAnother(), torch.randn(2, 3, 4, 4))
    assert check.worst < 1e-4
    assert [(group.name, group.size) for group in check.graph.groups] == [("stem", 8)]


class Heads(nn.Module):
    """Attention of a remembered number of heads, of a width that sets the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 5
        self.qkv, self.out = nn.Linear(6, 3 * 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2))


def test_remembered_heads_stay() -> None:
    graph = ChannelGraph.trace(Heads(), torch.zeros(2, 7, 6))
    assert graph.groups == ()
    assert "can't be narrowed" in graph.unprunable["qkv"]


@pytest.mark.usefixtures("_tables")
def test_heads_go_whole_where_a_table_says_how_their_number_follows() -> None:
    @register_attributes(Heads)
    def _heads(module: Any) -> None:
        module.heads = module.out.in_features // module.width

    check = check_invariant(Heads(), torch.randn(2, 7, 6))
    assert check.worst < 1e-4
    (group,) = check.graph.groups
    assert group.size == 4
    assert group.indices(("out.weight", 1), [1]).tolist() == [5, 6, 7, 8, 9]
    assert len(group.indices(("qkv.weight", 0), [1])) == 15


class ScaledHeads(Heads):
    """Computes its scale from the width of a head, which therefore stays."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.usefixtures("_tables")
def test_heads_that_a_table_names_are_found_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    @register_attributes(Heads)
    def _heads(module: Any) -> None:
        module.heads = module.out.in_features // module.width

    traces, record = [], probe.record
    monkeypatch.setattr(probe, "record", lambda *arguments: traces.append(1) or record(*arguments))
    searched = ChannelGraph.trace(ScaledHeads(), torch.zeros(2, 7, 6)).groups
    number = len(traces)

    @registry.register_whole(ScaledHeads)
    def _whole(module: Any) -> Any:
        yield "qkv.weight", 0

    traces.clear()
    named = ChannelGraph.trace(ScaledHeads(), torch.zeros(2, 7, 6)).groups

    assert [(group.name, group.size) for group in named] == [(group.name, group.size) for group in searched]
    assert [group.size for group in named] == [4]
    assert len(traces) == 2 < number


def test_rehearsal_refuses_what_does_not_come_out_as_foretold() -> None:
    class Steps(nn.Module):
        """Works at one channel less, not at half: no probe of single channels can see it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.out(x if x.shape[1] > 5 else x.flip(1))

    graph = ChannelGraph.trace(Steps(), IMAGES)
    assert graph.rehearse(graph.plan({"conv": [0]}))["conv"].size == 7
    with pytest.raises(RuntimeError, match="freezes channels of conv that were free"):
        graph.rehearse(graph.plan({"conv": [0, 1, 2]}))


class Finds(nn.Module):
    """Looks closer at each place that it finds, as detectors in two stages do."""

    def __init__(self, by_width: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.score, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)
        self.by_width = by_width

    def places(self, y: Tensor) -> list[int]:
        scores = self.score(y).flatten()
        places: list[int] = (scores > scores.mean()).nonzero().flatten().tolist()
        return places

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        result = self.last(y)
        for place in self.places(y):
            result = result + self.last(y * (y.shape[1] if self.by_width else 2 + place))
        return result


@pytest.mark.parametrize("by_width", [False, True])
def test_numbers_that_follow_values_are_told_from_those_that_follow_widths(by_width: bool) -> None:
    images = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = Finds(by_width)
    assert network.places(network.stem(images))
    graph = ChannelGraph.trace(network, images)
    if by_width:
        assert "depends on a width" in graph.unprunable["stem"]
        return
    assert [group.name for group in graph.groups] == ["stem"]
    plan = graph.plan({"stem": range(8)})
    shrunk = shrink_(copy.deepcopy(network), plan)
    assert network.places(network.stem(images)) != shrunk.places(shrunk.stem(images))
    assert graph.rehearse(plan).groups[0].size == 8
    assert check_invariant(network, images, fixed_work=False).worst < 1e-4


class Overwritten(nn.Module):
    """Computes with a number of its own, into which the forward has written what it saw."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("steps", torch.tensor([2, 5]))
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        numbers = self.steps.clone()
        self.write(numbers, y)
        return self.out(y) * int(numbers[0])


def _add(numbers: Tensor, y: Tensor) -> None:
    numbers += (y.sum() * 0 + 3).long()


def _through_a_view(numbers: Tensor, y: Tensor) -> None:
    numbers[0] = y.shape[2] + (y > 1e9).sum()


@pytest.mark.parametrize("write", [_add, _through_a_view])
def test_a_number_that_was_written_over_is_no_longer_known(write: Any) -> None:
    network = Overwritten(write)
    graph = ChannelGraph.trace(network, IMAGES)
    # Without the number it takes a trace with weights, which knows what was written.
    assert graph._subject.has_values
    assert check_invariant(network, IMAGES, graph=graph).worst < 1e-4


@pytest.mark.parametrize("layer", [nn.LSTM(4, 6), nn.GRU(4, 6, bidirectional=True), nn.Conv2d(4, 6, 1)])
def test_what_stands_in_does_so_in_every_list_of_a_module(layer: nn.Module) -> None:
    layer.tensors = [*layer.parameters()]
    own, flat = [*layer.parameters()], [*getattr(layer, "_flat_weights", [])]
    with InPlace.of(layer, [], {}, values=True).running() as network:
        inside = [*network.parameters()]
        assert all(a is not b for a, b in zip(own, inside, strict=True))
        assert all(a is b for a, b in zip(network.tensors, inside, strict=True))
        assert all(a is b for a, b in zip(getattr(network, "_flat_weights", inside), inside, strict=True))
    assert all(a is b for a, b in zip(own, layer.parameters(), strict=True))
    assert all(a is b for a, b in zip(flat, getattr(layer, "_flat_weights", []), strict=True))
