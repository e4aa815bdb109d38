"""The public face: groups by name, plans, costs."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, shrink_
from lit_prune.errors import TraceError
from testing.invariant import check_invariant, random_removal
from tests.toys import network

IMAGES = torch.zeros(1, 3, 8, 8)


def _chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 10), nn.Linear(10, 4)
    )


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.out(torch.cat([b, a], 1))


def test_an_unknown_group_is_told_its_neighbours() -> None:
    graph = ChannelGraph.trace(nn.ModuleDict({"a": _chain()})["a"], IMAGES)
    with pytest.raises(KeyError, match=r"No prunable group is named '44'\. Nearest: 4\."):
        graph.plan({"44": [0]})


def test_a_frozen_group_is_told_why() -> None:
    graph = ChannelGraph.trace(_chain(), IMAGES)
    with pytest.raises(KeyError, match="It is unprunable: reaches the network's output"):
        graph["5"]


def test_a_layer_that_does_not_run_is_frozen_and_says_so() -> None:
    net = _chain()
    net[0].register_module("spare", nn.Conv2d(3, 8, 1))
    graph = ChannelGraph.trace(net, IMAGES)
    assert graph.unprunable == {
        "5": "reaches the network's output",
        "0.spare": "takes no part in the forward of these inputs",
    }


def test_a_layer_whose_weight_is_computed_in_an_unknown_way_is_unprunable_and_says_so() -> None:
    net = _chain()
    nn.utils.parametrizations.orthogonal(net[2])
    graph = ChannelGraph.trace(net, IMAGES)
    assert "each forward computes it" in graph.unprunable["2"]
    assert check_invariant(net, torch.randn(1, 3, 8, 8)).worst < 1e-4


@pytest.mark.parametrize("channels", [[8], [-1], [0, 12]])
def test_channels_out_of_range(channels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"Group '0' has channels 0 to 7; there is no channel (8|-1|12) to remove"):
        ChannelGraph.trace(_chain(), IMAGES).plan({"0": channels})


def test_one_channel_must_stay() -> None:
    with pytest.raises(ValueError, match="All 8 channels of group '0' would go"):
        ChannelGraph.trace(_chain(), IMAGES).plan({"0": range(8)})


@pytest.mark.parametrize("channels", [[1, 5], torch.tensor([1, 5]), np.array([5, 1]), (1, 5, 5)])
def test_channels_in_any_form(channels: object) -> None:
    plan = ChannelGraph.trace(_chain(), IMAGES).plan({"0": channels})
    assert plan.kept["2.weight"] == {1: plan.kept["2.weight"][1]}
    assert plan.kept["2.weight"][1].tolist() == [0, 2, 3, 4, 6, 7]


def test_a_plan_of_nothing_is_empty() -> None:
    graph = ChannelGraph.trace(_chain(), IMAGES)
    assert not graph.plan({})
    assert not graph.plan({"0": []})
    assert graph.macs_without({"0": []}) == graph.macs


def test_unequal_halves_are_refused_with_both_names() -> None:
    graph = ChannelGraph.trace(Halves(), IMAGES)
    with pytest.raises(ValueError, match=r"'conv' and 'conv#2' .* would lose 2 and 1 channels"):
        graph.plan({"conv": [0, 1], "conv#2": [0]})
    with pytest.raises(ValueError, match=r"would lose 1 and 0 channels"):
        graph.plan({"conv": [0]})


def test_equal_halves_may_lose_different_channels() -> None:
    plan = ChannelGraph.trace(Halves(), IMAGES).plan({"conv": [0], "conv#2": [3]})
    assert plan.kept["conv.weight"][0].tolist() == [1, 2, 3, 4, 5, 6]
    assert plan.kept["out.weight"][1].tolist() == [0, 1, 2, 5, 6, 7]


def test_costs_in_closed_form() -> None:
    graph = ChannelGraph.trace(_chain(), IMAGES)
    assert graph.macs == 27 * 8 * 36 + 72 * 6 * 16 + 96 * 10 + 10 * 4
    assert graph.macs_without({"0": [0, 1], "2": [3]}) == 27 * 6 * 36 + 54 * 5 * 16 + 80 * 10 + 10 * 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_costs_foretold_are_those_of_the_shrunk_network(share: float) -> None:
    net = _chain()
    graph = ChannelGraph.trace(net, IMAGES)
    removal = random_removal(graph, share)
    plan = graph.plan(removal)
    shrunk = ChannelGraph.trace(shrink_(copy.deepcopy(net), plan), IMAGES)
    assert graph.macs_without(removal) == shrunk.macs
    rehearsed = graph.rehearse(plan)
    assert rehearsed.macs == shrunk.macs
    assert [(group.name, group.size) for group in rehearsed.groups] == [(g.name, g.size) for g in shrunk.groups]


def test_a_layer_of_one_channel_costs_each_time_that_it_is_called() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.out(self.second(x)) + self.out(self.second(2 * x))

    network = Twice()
    graph = ChannelGraph.trace(network, IMAGES)
    removal = {"first": [0, 2, 3], "second": [0]}

    shrunk = ChannelGraph.trace(shrink_(copy.deepcopy(network), graph.plan(removal)), IMAGES)

    assert graph.macs_without(removal) == shrunk.macs == 64 * (3 + 2 * 1 + 2 * 2)


def test_a_rehearsal_changes_nothing() -> None:
    net = _chain()
    graph = ChannelGraph.trace(net, IMAGES)
    plan = graph.plan({"0": [1, 2]})
    graph.rehearse(plan)
    assert graph.rehearse(plan)["0"].size == 6
    assert net[0].weight.shape[0] == graph["0"].size == 8


def test_down_to_the_last_channel() -> None:
    net = _chain()
    graph = ChannelGraph.trace(net, IMAGES)
    plan = graph.plan({group.name: range(1, group.size) for group in graph.groups})
    graph.rehearse(plan)
    shrunk = shrink_(net, plan)
    assert shrunk(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert ChannelGraph.trace(shrunk, IMAGES).groups == ()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled):
    seen = []

    class Looks(nn.Conv2d):
        def forward(self, image):
            seen.append(gc.isenabled())
            return super().forward(image)

    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        ChannelGraph.trace(Looks(3, 4, 1), torch.zeros(1, 3, 4, 4))
        with pytest.raises(TraceError):
            ChannelGraph.trace(Looks(3, 4, 1), torch.zeros(1, 2, 4, 4))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen
    assert not any(seen)


class Remembers(nn.Module):
    """What it remembers can't follow, so that the probe has to search."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.width = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), 8

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image).view(len(image), self.width, *image.shape[2:]))


class Loops(nn.Module):
    """How often it runs follows from values, so that its copies have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        image = self.first(image)
        for _ in range(int(image.sum().item() > 1e6) + 1):
            image = image.relu()
        return self.second(image)


@pytest.mark.parametrize("kind", [Remembers, Loops])
@pytest.mark.parametrize("is_hooked", [False, True])
def test_no_copy_waits_for_the_garbage_collector(kind, is_hooked):
    net = kind()
    if is_hooked:
        net.first.register_forward_hook(lambda module, args, output: output * 2)
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        graph = ChannelGraph.trace(net, IMAGES)
        graph.rehearse(graph.plan({}))
        del graph
        assert [each for each in gc.get_objects() if type(each) is kind] == [net]
    finally:
        (gc.enable if before else gc.disable)()


def test_a_coupled_layer_is_told_under_which_group_it_is():
    graph = ChannelGraph.trace(network(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(
        KeyError, match=r"No prunable group is named '1\.conv'.*coupled with others, as graph\['0\.0'\]"
    ):
        graph["1.conv"]
    with pytest.raises(KeyError, match=r"'3\.2'.*It is unprunable: reaches the network's output"):
        graph["3.2"]


def test_a_graph_says_in_one_line_what_it_holds():
    graph = ChannelGraph.trace(network(), torch.zeros(1, 3, 8, 8))
    assert repr(graph) == f"ChannelGraph(2 groups of 48 channels, 1 unprunable layer, {graph.macs:,} MACs)"


@pytest.mark.parametrize("mask", [torch.zeros(16).bool(), [True, False], torch.tensor([1.0])])
def test_masks_are_no_indices(mask):
    graph = ChannelGraph.trace(network(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"channels of group '0\.0' are named by their indices"):
        graph.plan({"0.0": mask})


def test_the_names_of_all_that_was_used():
    module = network()
    graph = ChannelGraph.trace(module, torch.zeros(1, 3, 8, 8))
    assert graph.tensors >= {name for name, _ in module.named_parameters()}


def test_a_graph_is_a_container_of_groups():
    graph = ChannelGraph.trace(network(), torch.zeros(1, 3, 8, 8))
    assert [group.name for group in graph] == ["0.0", "2.0"]
    assert "0.0" in graph
    assert "1.conv" not in graph
    with pytest.raises(TypeError, match="Groups are named by their first layer, but got 0"):
        graph[0]
    with pytest.raises(KeyError, match=r"coupled with others, as graph\['2\.0'\]"):
        graph["2.1"]
