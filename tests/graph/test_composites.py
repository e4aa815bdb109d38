"""Functions that are caught before torch takes them apart: what is said of them is what their parts would say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph
from lit_prune.errors import TraceError
from lit_prune.graph import composites
from lit_prune.graph.tracer import Tracer


class Common(nn.Module):
    """Common functions, in the ways that they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.normed = nn.BatchNorm2d(8)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)
        self.narrow, self.line = nn.Linear(16, 16, bias=False), nn.Conv1d(16, 16, 1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.normed(self.stem(x)), inplace=True)
        y = F.hardswish(y + F.relu(self.deep(y)) * self.scale)
        y = torch.cat([y, torch.add(y, y, alpha=2)], dim=1).flatten(2)
        y = self.line(y).transpose(1, 2)
        z = self.narrow(self.norm(y).contiguous())
        z += F.gelu(y, approximate="tanh")
        return self.head(F.gelu(z)).mul(2.0).add(torch.tensor(1.0))


def _facts(network: nn.Module, *inputs: Tensor) -> Any:
    graph = ChannelGraph.trace(network, *inputs)
    return (
        [(group.name, group.size, group.slots, group.balanced) for group in graph.groups],
        graph.unprunable,
        graph.macs,
    )


@pytest.mark.parametrize("inputs", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)])
def test_what_is_caught_says_what_torch_would_say(monkeypatch: pytest.MonkeyPatch, inputs: Tensor) -> None:
    network = Common().to(inputs.dtype)
    network(inputs)
    foreseen = []

    def foresee(tracer: Tracer, func: Any, *args: Any) -> Any:
        output = original(tracer, func, *args)
        foreseen.append(func if output is not None else None)
        return output

    original = Tracer.foresee
    monkeypatch.setattr(Tracer, "foresee", foresee)
    caught = _facts(network, inputs)
    assert len(set(foreseen) - {None}) >= 8
    monkeypatch.setattr(composites, "_DIRECT", {})
    monkeypatch.delitem(composites._COMPOSITES, F.batch_norm)
    assert caught == _facts(network, inputs)
    assert caught[0]


def test_rare_ways_to_call_go_to_torch() -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x), True)
            y = torch.cat((y, y), axis=0)
            y = F.relu(self.second(y[0]), inplace=False)[None]
            return self.last(F.gelu(input=y).add(other=y, alpha=2))

    graph = ChannelGraph.trace(Rare(), torch.zeros(1, 3, 8, 8))
    assert [(group.name, group.size) for group in graph.groups] == [("first", 8), ("second", 8)]
    assert not graph.unsupported


def test_arguments_may_go_by_their_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(input=x, weight=self.conv.weight, bias=self.conv.bias, stride=2, padding=1)
            y = F.silu(input=F.relu(input=y, inplace=True))
            y = torch.cat(tensors=[torch.cat((y, y), dim=2)], dim=-1)
            return F.linear(input=y.mean((2, 3)), weight=self.head.weight, bias=self.head.bias)

    graph = ChannelGraph.trace(Named(), torch.zeros(1, 3, 8, 8))
    assert [(group.name, group.size) for group in graph.groups] == [("conv", 8)]


def test_what_does_not_fit_is_refused_by_torch() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    with pytest.raises(TraceError, match="shapes cannot be multiplied"):
        ChannelGraph.trace(Wrong(), torch.zeros(2, 3))


def test_a_linear_map_of_one_value_or_onto_one_row() -> None:
    class Rows(nn.Module):
        def __init__(self, onto_a_row: bool) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.row = nn.Parameter(torch.ones(8)) if onto_a_row else None

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y[0]) if self.row is None else F.linear(y, self.row)

    graph = ChannelGraph.trace(Rows(onto_a_row=False), torch.zeros(2, 4))
    assert [group.slots for group in graph.groups] == [(("first.weight", 0), ("first.bias", 0), ("last.weight", 1))]
    onto = ChannelGraph.trace(Rows(onto_a_row=True), torch.zeros(8, 4))
    assert [group.slots for group in onto.groups] == [(("first.weight", 0), ("first.bias", 0), ("row", 0))]


def test_a_linear_map_of_known_numbers_is_known() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.numbers, self.scale = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y) * int(F.linear(self.numbers, self.scale))

    graph = ChannelGraph.trace(Counted(), torch.zeros(2, 4))
    assert not graph._subject.has_values, "no weights were needed"
    assert [group.name for group in graph.groups] == ["first"]


def test_a_constant_counts_where_it_is_not_the_usual_one() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(torch.add(y, y, alpha=y.shape[1] // 8))

    graph = ChannelGraph.trace(Scaled(), torch.zeros(2, 4))
    assert "depends on a width" in graph.unprunable["first"]
