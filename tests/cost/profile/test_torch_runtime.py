"""Torch as a runtime: networks run where and as their input is, with norms folded where they are deployed so."""

import copy

import pytest
import torch
from torch import nn

from lit_prune.cost import profile_latency
from lit_prune.cost.profile.torch_runtime import TorchRuntime, fold_norms_
from lit_prune.errors import ArgumentError
from tests.toys import network

IMAGES = torch.rand(2, 3, 16, 16)


class Odd(nn.Module):
    """Norms that can't be folded: behind a sum, behind a convolution that runs twice, without statistics; and one."""

    def __init__(self):
        super().__init__()
        self.twice, self.enter = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.behind_sum, self.own = nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False)
        self.up, self.folded = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.own(self.enter(x))
        x = self.behind_sum(self.first(self.twice(x)) + self.second(self.twice(x)))
        return self.folded(self.up(x))


@pytest.mark.parametrize("make", [network, Odd])
def test_a_folded_network_computes_the_same(make):
    torch.manual_seed(0)
    net = make()
    for _ in range(5):
        net(torch.randn(8, 3, 16, 16))
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    folded = fold_norms_(copy.deepcopy(net), IMAGES)
    norms = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ([] if make is network else ["first", "second", "behind_sum", "own"])
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_networks_run_as_their_input_is(dtype, layout):
    seen = []
    net = network().eval()
    images = IMAGES.to(dtype, memory_format=layout)

    class Runtime(TorchRuntime):
        def ready(self, network, inputs):
            ready = super().ready(network, inputs)
            seen.append((ready[0][0].weight.dtype, ready[0][0].weight.is_contiguous(memory_format=layout)))
            return ready

    table = profile_latency(net, images, Runtime(seconds=0.01), networks=8)
    assert set(seen) == {(dtype, True)}
    assert table.conditions["precision"] == str(dtype).removeprefix("torch.")
    assert table.conditions["layout"] == ("contiguous" if layout is torch.contiguous_format else "channels_last")
    assert table.conditions["device_type"] == "cpu"
    assert net[0][0].weight.dtype == torch.float32
    assert set(table.layers) == {"0.0", "1.conv", "2.0", "3.2"}


def test_token_ids_stay_whole_numbers():
    net = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    table = profile_latency(net, torch.randint(20, (2, 7)), TorchRuntime(seconds=0.01), networks=8)
    assert table.conditions["precision"] == "float32"
    assert set(table.layers) == {"1", "3"}


def test_a_graph_needs_a_gpu():
    with pytest.raises(ArgumentError, match=r"'cudagraphs' runs on a GPU of NVIDIA, but the input lies on cpu"):
        profile_latency(network(), IMAGES, "cudagraphs", networks=8)
