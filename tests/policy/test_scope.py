import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph
from lit_prune.policy.scope import Scope, largest_independent, main_sequential
from tests.toys import Classifier


@pytest.fixture
def module():
    return Classifier()


@pytest.fixture
def graph(module):
    return ChannelGraph.trace(module, torch.zeros(1, 3, 8, 8))


def names(picked):
    return [group.name for group in picked[0]]


def test_all_by_default(module, graph):
    assert names(Scope().pick(module, graph)) == ["net.0.0", "net.2.0"]


@pytest.mark.parametrize("blocks", [[2], [-2], ["net.2.0"], ["net.2"], ["2.*"], ["*.2.*"], ["net.2.?"]])
def test_blocks_by_number_and_pattern(module, graph, blocks):
    scope = Scope(blocks)
    scope.check(module)
    assert names(scope.pick(module, graph)) == ["net.2.0"]


class Compiled(nn.Module):
    """Names its network as ``torch.compile`` does."""

    def __init__(self, network):
        super().__init__()
        self._orig_mod = network

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize("blocks", [[2], ["net.2.0"], ["net.2"], ["2.*"], ["net._orig_mod.2.*"], ["_orig_mod.2.0"]])
def test_layers_of_a_compiled_network_have_the_names_that_they_had(module, blocks):
    module.net = Compiled(module.net)
    scope = Scope(blocks)
    scope.check(module)
    graph = ChannelGraph.trace(module, torch.zeros(1, 3, 8, 8))
    assert names(scope.pick(module, graph)) == ["net._orig_mod.2.0"]


def test_a_group_takes_part_only_with_all_its_layers(module, graph):
    picked, left = Scope([0, 2]).pick(module, graph)
    assert [group.name for group in picked] == ["net.2.0"]
    assert left == {"net.0.0": "coupled with net.1.conv, which is outside of `blocks`"}
    assert names(Scope([0, 1]).pick(module, graph)) == ["net.0.0"]


def test_exclude_wins(module, graph):
    picked, left = Scope(exclude=["net.1.*"]).pick(module, graph)
    assert [group.name for group in picked] == ["net.2.0"]
    assert left == {"net.0.0": "net.1.conv is excluded"}


def test_balanced_groups_take_part_together():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 1)
            self.end = nn.Conv2d(12, 2, 1)

        def forward(self, x):
            a, b = self.stem(x).chunk(2, 1)
            return self.end(torch.cat([self.one(a), self.two(b)], 1))

    net = Halves()
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    picked, _ = Scope(["stem"]).pick(net, graph)
    assert len(picked) == 2
    assert all(set(group.balanced) == {member.name for member in picked} for group in picked)


@pytest.mark.parametrize(
    ("blocks", "exclude", "message"),
    [
        ([9], [], "no block 9: net has blocks 0 to 3"),
        (["net.7.*"], [], "matches no layer of Classifier"),
        (None, ["nett.0"], "Did you mean .*'net.0.0'"),
    ],
)
def test_unknown_names_are_refused(module, blocks, exclude, message):
    with pytest.raises(ValueError, match=message):
        Scope(blocks, exclude).check(module)


def test_nothing_prunable_says_why(module, graph):
    with pytest.raises(ValueError, match=r"leave nothing that could be pruned \(net.3.2: reaches the network's output"):
        Scope([3]).pick(module, graph)


@pytest.mark.parametrize(
    ("blocks", "exclude", "advice"),
    [([3], [], "Widen `blocks`."), (None, ["net.*"], "Shorten `exclude`."), ([0], ["net.0.0"], "Widen .* or shorten")],
)
def test_the_advice_is_of_what_was_given(module, graph, blocks, exclude, advice):
    with pytest.raises(ValueError, match=advice):
        Scope(blocks, exclude).pick(module, graph)


def test_a_network_without_channels_is_refused():
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        Scope().check(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


@pytest.mark.parametrize(
    ("blocks", "error"), [([], ValueError), ([1.5], TypeError), ([True], TypeError), (1, TypeError), ("net", TypeError)]
)
def test_bad_blocks(blocks, error):
    with pytest.raises(error, match="blocks"):
        Scope(blocks)


def test_main_sequential_is_the_outermost_with_most_layers(module):
    assert main_sequential(module) == "net"
    assert main_sequential(module.net) == ""
    with pytest.raises(ValueError, match="Give patterns of layer names"):
        main_sequential(module.net[1])


def test_largest_independent_layers_share_no_tensor():
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 2, 1)
    )
    groups = ChannelGraph.trace(chain, torch.zeros(1, 3, 4, 4)).groups
    # Layers 1 and 2 share the weight of layer 2, 0 and 1 that of layer 1.
    assert [group.name for group in largest_independent(groups, 1)] == ["1"]
    assert [group.name for group in largest_independent(groups, 4)] == ["1", "3"]
