"""Networks under quantisation-aware training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization

from lit_prune import ChannelGraph, shrink_
from testing.invariant import check_invariant
from tests.graph.tiny import sizes

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
    pytest.mark.filterwarnings("ignore:.*will be deprecated"),
]

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantise, self.restore = quantization.QuantStub(), quantization.DeQuantStub()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid())
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.restore(self.last(self.second(self.first(self.quantise(x))).mean((2, 3))))


def _prepared(backend: str = "x86", version: int = 1, fused: bool = True, run: bool = True) -> nn.Module:
    net: Any = Quantised().train()
    if fused:
        parts = [["first.0", "first.1", "first.2"], ["second.0", "second.1"]]
        net = quantization.fuse_modules_qat(net, parts)
    net.qconfig = quantization.get_default_qat_qconfig(backend, version=version)
    quantization.prepare_qat(net, inplace=True)
    if run:
        with torch.no_grad():
            net(IMAGES)
    return net


def _worst(check: Any) -> float:
    """Observers go on in eval mode: a network that has run is another one, and its plans are not composed here."""
    return max(check.first, check.second)


# A value on the edge of two steps may fall on either side.
STEP = 1e-2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_all_is_free(backend: str, version: int, fused: bool) -> None:
    check = check_invariant(_prepared(backend, version, fused), IMAGES)
    assert _worst(check) < STEP
    assert not check.graph.unsupported
    assert sizes(check.graph) == {"first.0": 8, "second.0": 6}


def test_before_the_first_forward() -> None:
    net = _prepared(run=False)
    assert sizes(ChannelGraph.trace(net, IMAGES)) == {"first.0": 8, "second.0": 6}


@pytest.mark.parametrize("switch", [quantization.disable_observer, quantization.disable_fake_quant])
def test_observers_and_quantisers_may_be_off(switch: Any) -> None:
    assert _worst(check_invariant(_prepared().apply(switch), IMAGES)) < STEP


def test_numbers_of_channels_follow_and_training_goes_on() -> None:
    net = _prepared()
    shrink_(net, ChannelGraph.trace(net, IMAGES).plan({"first.0": [1, 5], "second.0": [0]}))
    quantiser = net.first[0].weight_fake_quant
    assert quantiser.scale.shape == quantiser.zero_point.shape == (6,)
    assert quantiser.activation_post_process.min_val.shape == (6,)
    net.train()(IMAGES).square().sum().backward()
    assert net.first[0].weight.grad.shape == (6, 3, 3, 3)
    converted = quantization.convert(copy.deepcopy(net).eval())
    assert converted.first[0].weight().shape == (6, 3, 3, 3)


def test_the_range_is_of_the_channels_that_are_left() -> None:
    """A masked sigmoid is one half: more than any value that is left, and no reason for another range."""

    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)
            self.quantise = quantization.FusedMovingAvgObsFakeQuantize(
                quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.quantise((self.enter(x) - 9).sigmoid()))

    check = check_invariant(Gates(), torch.rand(3, 4))
    assert _worst(check) < STEP
    assert sizes(check.graph) == {"enter": 8}
