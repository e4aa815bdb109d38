"""What is zero where a channel is masked: sums over it are exact, and division by it is prevented."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph, PruningPlan, mask_
from testing.invariant import check_invariant
from tests.graph.tiny import exact, sizes

IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(2))


class Scaled(nn.Module):
    """A convolution, a function of what comes out and of a parameter with a number a channel, a convolution."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(self.enter(x), self.scale))


DIVISIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quotient": lambda x, s: x / s,
    "reciprocal": lambda x, s: x * (1 / s),
    "root": lambda x, s: x * s.rsqrt(),
    "negative power": lambda x, s: x * s**-2,
    "logarithm": lambda x, s: x * s.log(),
    "of a square": lambda x, s: x / s.square().sqrt(),
    "rounded to steps": lambda x, s: torch.round(x / s) * s,
    "Snake": lambda x, s: x + torch.sin(x * s) ** 2 / s,
    "power means": lambda x, s: x.clamp(min=1e-6).pow(s).mean((2, 3), keepdim=True).pow(1 / s),
    "by its own deviation": lambda x, s: s * x / x.std((2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_a_masked_network_does_not_divide_by_what_is_masked(name: str) -> None:
    net = Scaled(DIVISIONS[name])
    graph = exact(net, IMAGES)
    assert sizes(graph) == {"enter": 8}
    plan = graph.plan({"enter": [1, 2]})
    assert mask_(copy.deepcopy(net), plan)(IMAGES).isfinite().all()


def test_what_can_be_no_divisor_of_zero_is_masked() -> None:
    net = Scaled(lambda x, s: x / (s.abs() + 1e-3))
    plan = exact(net, IMAGES).plan({"enter": [1]})
    assert plan.divisors == ()
    assert not mask_(net, plan).scale[1].any()


def test_a_divisor_that_is_a_matrix_stays_along_one_dimension_alone() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inner, self.leave = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.inner.weight / self.inner.weight.norm(dim=1, keepdim=True)
            return self.leave(F.linear(self.enter(x).relu(), weight).relu())

    net = Normalised()
    graph = exact(net, torch.randn(3, 5))
    assert sizes(graph) == {"enter": 8, "inner": 8}
    plan = graph.plan({"enter": [1], "inner": [2]})
    assert plan.divisors == (("inner.weight", 0),)
    masked = mask_(net, plan)
    assert not masked.inner.weight[:, 1].any()
    assert masked.inner.weight[2].any()


@pytest.mark.parametrize("activation", [torch.sigmoid, torch.relu, lambda x: F.elu(x) + 1])
def test_products_over_channels(activation: Callable[[Tensor], Tensor]) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.leave = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = activation(self.query(x)) @ activation(self.key(x)).transpose(1, 2)
            return self.leave(scores @ x)

    assert sizes(exact(Scores(), torch.randn(2, 5, 6))) == {"query": 8}


def test_what_was_written_over_is_no_longer_zero() -> None:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.leave = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            query, key = self.query(x), self.key(x)
            query.view(-1).add_(1)
            key.add_(1)
            return self.leave(query @ key.transpose(1, 2) @ x)

    exact(Filled(), torch.randn(2, 5, 6))


def test_divisors_go_with_a_plan() -> None:
    graph = ChannelGraph.trace(Scaled(DIVISIONS["quotient"]), IMAGES)
    plan = graph.plan({"enter": [1]})
    again = PruningPlan.from_state_dict(plan.state_dict())
    assert again.divisors == plan.divisors == (("scale", 0),)
    assert plan.with_prefix("net.").divisors == (("net.scale", 0),)
    assert plan.only(["enter.weight"]).divisors == ()
    assert PruningPlan({}).then(plan).divisors == plan.divisors
    assert again.digest == PruningPlan(plan.kept, plan.sizes).digest


def test_two_prunings_compose() -> None:
    check = check_invariant(Scaled(DIVISIONS["quotient"]), IMAGES)
    assert check.worst < 1e-4
