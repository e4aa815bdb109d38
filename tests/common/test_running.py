"""Networks with compiled parts are traced as they were written."""

import pytest
import torch
from torch import nn

from lit_prune.common.running import eagerly
from lit_prune.graph import ChannelGraph


class Part(nn.Module):
    """In place torch compiles no container of its own, in some releases."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


def compiled(way: str, frames: list[object]) -> nn.Sequential:
    """A small network, the first part of it compiled, that notes what the compiler was given."""

    def backend(graph, _inputs):
        frames.append(graph)
        return graph

    part = Part()
    if way == "in place":
        part.compile(backend=backend)
    else:
        part = torch.compile(part, backend=backend)
    return nn.Sequential(part, nn.Conv2d(8, 4, 1)).eval()


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_nothing_is_compiled_while_open(way):
    frames = []
    network, image = compiled(way, frames), torch.rand(1, 3, 8, 8)
    with eagerly():
        expected = network(image)
    assert not frames
    torch.testing.assert_close(network(image), expected)
    assert frames


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_a_trace_compiles_nothing(way):
    frames = []
    network = compiled(way, frames)
    graph = ChannelGraph.trace(network, torch.rand(1, 3, 8, 8))
    assert [group.size for group in graph.groups] == [8]
    assert not frames
