"""Rules for convolutions, products and norms, each on a network small enough to say by hand what hangs together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import ChannelGraph, shrink_
from tests.graph.tiny import IMAGES, exact, random_images, sizes


def test_depthwise_convolutions_go_with_their_input() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 6}
    assert graph["0"].indices(("1.weight", 0), [1]).tolist() == [2, 3]


def test_maps_that_are_convolved_one_by_one_are_known_afterwards() -> None:
    class OneByOne(nn.Module):
        def __init__(self, is_output: bool) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Identity() if is_output else nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x)
            kernel = torch.full((1, 1, 3, 3), 0.1, device=x.device)
            return self.leave(F.conv2d(y.reshape(-1, 1, *y.shape[2:]), kernel, padding=1).view(y.shape))

    assert sizes(exact(OneByOne(is_output=False))) == {"enter": 6}
    assert ChannelGraph.trace(OneByOne(is_output=True), IMAGES).unprunable["enter"] == "reaches the network's output"


@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions(bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 2, 2, bias=bias), nn.Conv2d(8, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 6, "1": 8}
    assert {("1.weight", 1), ("2.weight", 1)} <= set(graph["1"].slots)


def test_depthwise_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), nn.Conv2d(6, 4, 1))
    assert sizes(exact(net)) == {"0": 6}


def test_grouped_transposed_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.Conv2d(12, 4, 1))
    graph = exact(net)
    # One row of the weight makes an output of each group.
    assert sizes(graph) == {"0": 4, "0#2": 4, "1": 6}
    assert graph["0"].balanced == ("0", "0#2")


def test_grouped_convolutions_lose_equally_in_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1))
    graph = exact(net)
    # One column of the weight reads an input of each group.
    assert sizes(graph) == {"0": 4, "1": 6, "1#2": 6}
    assert graph["0"].indices(("0.weight", 0), [1]).tolist() == [1, 5]
    assert graph["1"].balanced == ("1", "1#2")


def test_grouped_convolution_with_one_output_a_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 3, groups=2), nn.Conv2d(2, 4, 1))
    graph = exact(net)
    assert "no other channel could stay in its place" in graph.unprunable["1"]


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)
    net = nn.Sequential(conv(3, 8, 1), norm(8), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 4, 1))
    graph = exact(net, random_images((2, 3, *[5] * dims)))
    assert sizes(graph) == {"0": 8}
    assert len(graph["0"].slots) == 2 + 4 + 2 + 1


def test_flatten_before_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4))
    graph = exact(net)
    assert sizes(graph) == {"0": 8, "2": 16}
    assert graph["0"].indices(("2.weight", 1), [1]).tolist() == list(range(36, 72))


def test_linear_layers_on_the_last_dimension() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 10, bias=False), nn.Linear(10, 4))
    assert sizes(exact(net)) == {"0": 8, "2": 10}


def test_products_of_values() -> None:
    class Gram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 10)
            self.out = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.einsum("bnd,bmd->bnm", self.q(x), self.k(x)) @ self.v(x))

    graph = exact(Gram(), random_images((2, 5, 6)))
    assert sizes(graph) == {"q": 8, "v": 10}
    assert graph["q"].layers == ("q", "k")


def test_batch_norm_goes_along() -> None:
    graph = exact(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    assert {("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0)} <= set(graph["0"].slots)


def test_layer_norm_takes_its_statistics_from_what_is_left() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert sizes(exact(nn.Sequential(nn.Conv2d(3, 8, 1), Last(8), nn.Conv2d(8, 4, 1)))) == {"0": 8}


def test_layer_norm_over_a_whole_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm([8, 6, 6]), nn.Conv2d(8, 4, 1))
    assert sizes(exact(net)) == {"0": 8}


def test_rms_norm() -> None:
    assert sizes(exact(nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 4)))) == {"0": 8}


def test_group_norm_loses_equally_in_each_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 4, "0#2": 4, "0#3": 4}
    assert graph["0"].balanced == ("0", "0#2", "0#3")


def test_group_norm_of_one_group() -> None:
    assert sizes(exact(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1)))) == {"0": 8}


def test_group_norm_of_one_channel_a_group_loses_groups() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(8, 8), nn.Conv2d(8, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 8}
    shrunk = shrink_(net, graph.plan({"0": [1, 2]}))
    assert (shrunk[1].num_groups, shrunk[1].num_channels) == (6, 6)


def test_groups_with_one_channel_left_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 4, 1))
    shrunk = shrink_(net, ChannelGraph.trace(net, IMAGES).plan({f"0{piece}": [0] for piece in ("", "#2", "#3", "#4")}))
    assert ChannelGraph.trace(shrunk, IMAGES).groups == ()


def test_instance_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 4, 1))
    assert sizes(exact(net)) == {"0": 8}


class Standardised(nn.Conv2d):
    """Its weight has mean 0 and variance 1 over all inputs: they change with one of them gone."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, groups=self.groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_standardised_weight_takes_its_statistics_from_the_inputs_that_are_left(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 6, 3, groups=groups), nn.Conv2d(6, 4, 1))
    assert sum(group.size for group in exact(net).groups) == (8 if groups == 1 else 4) + 6
    alone = nn.Sequential(Standardised(3, 6, 1), Standardised(6, 4, 1))
    assert sizes(exact(alone)) == {"0": 6}


def test_values_that_are_normalised_over_the_batch_keep_what_they_are_normalised_over() -> None:
    class Swapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)

    graph = exact(nn.Sequential(nn.Conv2d(3, 8, 1), Swapped(), nn.Conv2d(8, 4, 1)))
    assert "is normalised over" in graph.unprunable["0"]


def test_prelu() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 6, 1), nn.PReLU(), nn.Conv2d(6, 4, 1))
    graph = exact(net)
    assert sizes(graph) == {"0": 8, "2": 6}
    assert ("1.weight", 0) in graph["0"].slots
