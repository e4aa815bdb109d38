"""Channels are ranked among those of layers that are built alike."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, ChannelPruning
from lit_prune.criteria import Evidence, Magnitude
from lit_prune.select import Global, Isomorphic, MacsBudget, Target
from lit_prune.select.isomorphic import kinds_of
from tests.toys import Residual, fitted


def case(net, images):
    graph = ChannelGraph.trace(net, images)
    evidence = Evidence(net, graph, graph.groups)
    widths = {group.name: group.size for group in graph.groups}
    return evidence, Magnitude()(evidence), Target(0.5, widths, graph.macs, 1, kinds=kinds_of(net, graph))


def deep():
    torch.manual_seed(0)
    threes = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(3)]
    ones = [nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *threes, *ones, nn.Conv2d(16, 4, 1)).eval()


IMAGES = torch.zeros(1, 3, 8, 8)


def test_kinds_are_told_by_layers_and_kernels_whatever_the_widths():
    net = deep()
    kinds = kinds_of(net, ChannelGraph.trace(net, IMAGES))
    alike = {}
    for name, kind in kinds.items():
        alike.setdefault(kind, []).append(name)
    # The last of three reads by a kernel of one, the first of the ones is made and read by such.
    assert [*alike.values()] == [["0"], ["1.0", "2.0"], ["3.0"], ["4.0", "5.0", "6.0"]]


def test_what_is_coupled_otherwise_is_of_another_kind():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), Residual(16), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1))
    kinds = kinds_of(net, ChannelGraph.trace(net, torch.zeros(1, 3, 16, 16)))
    assert len({*kinds.values()}) == len(kinds) == 2


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_each_kind_loses_the_same_ratio_however_its_scores_are(factor):
    evidence, scores, target = case(deep(), IMAGES)
    scores = {name: score * (factor if name[0] in "456" else 1.0) for name, score in scores.items()}
    gone = Isomorphic(normalization=0)(evidence, scores, target)
    for names in (["1.0", "2.0"], ["4.0", "5.0", "6.0"]):
        assert sum(len(gone.get(name, ())) for name in names) == 8 * len(names)


def test_of_one_kind_it_ranks_as_global_does():
    evidence, scores, target = case(deep(), IMAGES)
    one = replace(target, kinds={})
    first, second = (spread(evidence, scores, one) for spread in (Isomorphic(), Global()))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_is_pruned_by_it_to_a_budget():
    callback = ChannelPruning(0.4, [1, 2], selection=MacsBudget("isomorphic"), round_to=1, verbose=False)
    fitted(callback)
    assert callback.events[-1]["gone"]["macs"] == pytest.approx(0.4, abs=0.03)
