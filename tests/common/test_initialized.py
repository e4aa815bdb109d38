"""A lazy layer has no weights before its first input: refused by name wherever a network is given."""

import pytest
import torch
from torch import nn

from lit_prune import ArgumentError, ChannelGraph, ChannelPruning, plan_pruning, prune_, shrink_
from lit_prune.common.initialized import check_network
from lit_prune.cost import Cost
from tests.toys import Classifier, loader, trainer

IMAGES = torch.rand(2, 3, 16, 16)
PLAN = plan_pruning(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)), IMAGES, amount=0.5)


def lazy():
    return nn.Sequential(nn.Sequential(nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.ReLU()), nn.LazyConv2d(4, 3))


@pytest.mark.parametrize(
    "use",
    [
        lambda net: plan_pruning(net, IMAGES, amount=0.5),
        lambda net: ChannelGraph.trace(net, IMAGES),
        lambda net: shrink_(net, PLAN),
        lambda net: prune_(net, PLAN),
        lambda net: Cost.of(net, IMAGES),
    ],
)
def test_it_is_refused_by_name_and_taken_once_it_has_run(use):
    network = lazy()
    with pytest.raises(ArgumentError, match=r"is not whole: '0\.0', a LazyConv2d, has seen no input"):
        use(network)
    network(IMAGES)
    check_network("network", network)


def test_of_a_norm_the_buffers_are_missing_too():
    network = nn.Sequential(nn.LazyBatchNorm2d(affine=False))
    with pytest.raises(ArgumentError, match="LazyBatchNorm2d"):
        check_network("network", network)


def test_in_a_trainer():
    module = Classifier()
    module.net = nn.Sequential(lazy(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ArgumentError, match=r"Classifier is not whole: 'net\.0\.0\.0'"):
        trainer(ChannelPruning(0.5, 1)).fit(module, loader())
    module.net(IMAGES)
    trainer(ChannelPruning(0.5, 1, verbose=False)).fit(module, loader())
    assert module.net[0][0][0].out_channels == 8
