"""The memory of a forward's values is what torch's allocator hands out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_prune import ChannelGraph, TraceError
from lit_prune.cost import peak_memory
from lit_prune.cost.activation_memory import timeline
from testing.allocator import measured_peak
from tests.toys import network

EXAMPLE = torch.rand(2, 64)


class Net(nn.Module):
    """Linear layers, whose kernels take nothing for themselves."""

    def __init__(self, forward):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.way = forward

    def forward(self, x):
        return self.way(self.layers, x)


def plain(layers, x):
    for layer in layers:
        x = layer(x).relu()
    return x


def kept_for_the_end(layers, x):
    seen = []
    for layer in layers:
        x = layer(x)
        seen.append(x)
    return torch.cat(seen, 1).sum(1)


def views_and_in_place(layers, x):
    first, second = layers[0](x).chunk(2, 1)
    x = torch.cat([second, first], 1).view(2, 8, 8).transpose(1, 2).reshape(2, 64)
    return layers[1](F.relu(x, inplace=True)).add_(x)


def by_a_number(layers, x):
    return layers[0](x) * torch.tensor([2.0, 3.0]).sum().item()


@pytest.mark.parametrize("way", [plain, kept_for_the_end, views_and_in_place, by_a_number])
def test_it_is_what_the_allocator_hands_out(way):
    net = Net(way)
    assert peak_memory(net, EXAMPLE) == pytest.approx(measured_peak(net, EXAMPLE), abs=64)


def test_it_is_that_of_the_shrunk_network():
    net, images = network(), torch.rand(3, 3, 16, 16)
    graph = ChannelGraph.trace(net, images)
    plan = graph.plan({graph.groups[0].name: range(0, graph.groups[0].size, 2)})
    from lit_prune import shrink_

    left = shrink_(copy.deepcopy(net), plan)
    assert int(timeline(graph, plan).max()) == peak_memory(left, images) < peak_memory(net, images)


def test_precisions_count_bytes_and_examples_are_alike():
    net = network()
    one = peak_memory(net, torch.rand(1, 3, 16, 16))
    assert peak_memory(net, torch.rand(4, 3, 16, 16)) == 4 * one
    assert peak_memory(net, torch.rand(1, 3, 16, 16), precision="float16") == one // 2
    assert peak_memory(net, torch.rand(1, 3, 16, 16), precision="int8") == one // 4


def test_attention_is_one_operation():
    query = torch.rand(1, 2, 512, 8)

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return F.scaled_dot_product_attention(x * self.scale, x, x)

    assert peak_memory(Attend(), query) < 512 * 512 * 4


def test_the_network_stays_as_it_is():
    net = network().train()
    before = copy.deepcopy(net.state_dict())
    hook = net.register_forward_hook(lambda module, args, output: output * 2)
    peak_memory(net, torch.rand(1, 3, 16, 16))
    hook.remove()
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_forward_that_fails_is_named():
    with pytest.raises(TraceError):
        peak_memory(network(), torch.rand(1, 4, 16, 16))
