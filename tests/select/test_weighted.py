import pytest
import torch
from torch import nn

from lit_prune import ArgumentTypeError, ChannelGraph, SelectionError, plan_pruning, shrink_
from lit_prune.criteria import Evidence, Magnitude
from lit_prune.select import MacsBudget, Target, Uniform, Weighted


def _case(ratio=0.25, round_to=1):
    layers = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 2, 1),
    ]
    net = nn.Sequential(*layers)
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    evidence = Evidence(net, graph, graph.groups)
    widths = {group.name: group.size for group in graph.groups}
    return evidence, Magnitude()(evidence), Target(ratio, widths, graph.macs, round_to)


def _gone(selection, **options):
    return {name: len(channels) for name, channels in selection(*_case(**options)).items()}


def test_factors_scale_the_share_up_to_the_most():
    assert _gone(Weighted({"1": 2.0, "2": 9.0}, most=0.75)) == {"0": 8, "1": 16, "2": 24}


def test_a_factor_of_zero_keeps_a_layer_whole():
    assert _gone(Weighted({"[01]": 0.0})) == {"2": 8}


def test_the_first_pattern_counts():
    assert _gone(Weighted({"1": 0.5, "*": 2.0})) == {"0": 16, "1": 4, "2": 16}


def test_without_factors_it_is_uniform():
    assert _gone(Weighted({})) == _gone(Uniform())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_budget_is_met_with_more_from_the_named_layers(share):
    evidence, scores, target = _case(share)
    gone = MacsBudget(spread=Weighted({"1": 3.0}))(evidence, scores, target)

    graph = ChannelGraph.trace(shrink_(evidence.network, evidence.graph.plan(gone)), torch.zeros(1, 3, 8, 8))
    assert graph.macs <= (1 - share) * target.macs
    assert len(gone["1"]) >= len(gone["0"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(({"a": -1.0},), "factor of 'a' must be 0 or more"), (({}, 1.0), r"most must be in \(0, 1\)")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Weighted(*arguments)


def test_patterns_that_name_no_layer_are_told():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    with pytest.raises(SelectionError, match=r"None of the patterns of Weighted \(zz, ...\) names a layer: they are 0"):
        plan_pruning(net, torch.zeros(1, 3, 8, 8), amount=0.4, selection=Weighted({"zz": 1.5}))
    with pytest.raises(ArgumentTypeError, match="Weighted takes a dict from patterns to factors, but got None"):
        Weighted(None)
