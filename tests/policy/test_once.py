"""One call for a loop of one's own: the plan of one pruning."""

import copy
import math

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, Distillation, Recovery, ScaleSparsity, mask_, plan_pruning, prune_
from lit_prune.errors import ArgumentError, ArgumentTypeError, SelectionError
from lit_prune.select import ClusterSelection, MacsBudget, ParamsBudget, SizeBudget
from testing.invariant import difference, randomise_
from tests.toys import network

IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("selection", ["macs", "global", "uniform"])
def test_it_prunes_as_much_as_is_asked_and_changes_nothing(selection):
    module = randomise_(network(32)).eval()
    before = copy.deepcopy(module.state_dict())
    plan = plan_pruning(module, IMAGE, amount=0.4, selection=selection, round_to=1)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    dense = ChannelGraph.trace(module, IMAGE)
    masked = copy.deepcopy(module)
    prune_(module, plan)
    after = ChannelGraph.trace(module, IMAGE)
    if selection == "macs":
        assert 0.55 * dense.macs < after.macs <= 0.6 * dense.macs
    else:
        kept, total = (sum(group.size for group in graph.groups) for graph in (after, dense))
        assert kept == pytest.approx(0.6 * total, abs=2)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert difference(module(images), mask_(masked, plan).eval()(images)) < 1e-4


def test_layers_that_stay():
    plan = plan_pruning(network(), IMAGE, amount=0.2, selection="uniform", exclude=["2.0"], round_to=4)
    assert "2.0.bias" not in plan.kept
    assert len(plan.kept["0.0.weight"][0]) == 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 1.5}, ArgumentError, r"amount must be a ratio in \(0, 1\)"),
        ({"amount": 0.99}, SelectionError, "out of reach"),
        ({"selection": "mac"}, ArgumentError, "Did you mean 'macs'"),
        ({"selection": ClusterSelection()}, ArgumentError, "goes by activations of objects, and there are none here"),
        ({"exclude": ["head"]}, ArgumentError, "matches no layer"),
        ({"blocks": [9]}, ArgumentError, "There is no block 9"),
        ({"round_to": 64}, ArgumentError, "round_to=64, and the widest layer"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        plan_pruning(network(), IMAGE, **{"amount": 0.5, **options})


def test_a_shape_is_no_input():
    with pytest.raises(TypeError, match=r"takes example inputs of the network, with a tensor, but got"):
        plan_pruning(network(), (1, 3, 8, 8), amount=0.5)


def test_losses_that_are_not_finite_are_refused():
    net, images = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)), torch.randn(2, 3, 8, 8)
    losses = (float("nan") * net(images).mean() for _ in range(2))
    with pytest.raises(ArgumentError, match="must be finite, but one is nan"):
        plan_pruning(net, images, amount=0.5, criterion="taylor", losses=losses, round_to=4)
    with pytest.raises(ArgumentTypeError, match="losses is a list of losses"):
        plan_pruning(net, images, amount=0.5, criterion="taylor", losses=net(images).mean(), round_to=4)


@pytest.mark.parametrize("make", [lambda: Distillation(math.nan), lambda: Distillation(math.inf)])
def test_numbers_that_are_none_are_refused(make):
    with pytest.raises(ArgumentError, match=r"weight must be"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleSparsity(until="3"), "until must be a whole number"),
        (lambda: ScaleSparsity(until=-1), "until must be 0 or more"),
        (lambda: Recovery(max_drop=0.1, monitor=3), "monitor is the name of a logged metric, but got 3"),
        (lambda: Recovery(floor=math.nan, monitor="score"), "floor must be a number, but got nan"),
    ],
)
def test_what_would_fail_in_training_is_refused_at_once(make, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make()


@pytest.mark.parametrize("kind", [MacsBudget, SizeBudget, ParamsBudget])
def test_limits_that_are_none_are_refused(kind):
    with pytest.raises(ArgumentError, match=r"at_most must be a number, but got nan"):
        kind(at_most=math.nan)
