import io
from copy import deepcopy

import pytest
import torch
from rich.console import Console
from torch import nn

from lit_prune import ChannelGraph, shrink_
from lit_prune.cli.networks import load_network
from lit_prune.cost.counts import Cost
from lit_prune.report.inspection import channel_cost, coverage, inspection, layer_widths


class _Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        one, two = self.stem(x).chunk(2, dim=1)
        return self.head(self.up(one * two.cumsum(1)))


def _printed(graph, network, width=140, **options) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(inspection(graph, network, **options))
    return console.file.getvalue()


def test_every_layer_is_in_the_table_with_its_reason():
    network = _Halves()
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 4, 4))
    text = _printed(graph, network, title="halves")

    for layer in ("stem", "up", "head"):
        assert layer in text
    assert "halves" in text
    assert "unprunable: reaches the network's output" in text
    assert all(reason in text for reason in graph.unprunable.values())
    assert "cumsum" in text
    assert f"({sum(p.numel() for p in network.parameters()):,})" in text


def test_coverage_counts_transposed_convolutions_and_leaves_outputs_out():
    network = _Halves()
    found = coverage(ChannelGraph.trace(network, torch.zeros(1, 3, 4, 4)), network)

    assert (found.prunable, found.outputs, found.total) == (6, 5, 19)
    assert found.ratio == pytest.approx(6 / 14)


def test_coupled_layers_and_equal_halves_are_named():
    network, images = load_network("yolov8n.yaml", image_size=64)
    text = _printed(ChannelGraph.trace(network, images), network)

    lines = [line.strip("│ ").split("│")[0].strip() for line in text.splitlines()]
    row = lines.index("model.2.m.0.cv2.conv")
    assert lines[row + 1 : row + 3] == ["coupled with model.2.cv1.conv", "loses as many as model.2.cv1.conv"]
    assert "operations without a rule  none" in text


def test_names_are_whole_on_80_columns_and_there_is_one_total():
    network, images = load_network("yolov8n.yaml", image_size=64)
    graph = ChannelGraph.trace(network, images)
    text = _printed(graph, network, width=80)

    assert max(map(len, text.splitlines())) <= 80
    words = {word.strip(",") for word in text.split()}
    names = {group.name for group in graph.groups} | {layer for group in graph.groups for layer in group.layers}
    assert names | set(graph.unprunable) <= words
    found = coverage(graph, network)
    totals = " ".join(text.split("└")[-1].split())
    assert f"{found.prunable:,} of {found.total - found.outputs:,} channels" in totals
    assert f"{sum(group.size for group in graph.groups):,}" not in totals


def test_the_cost_of_a_channel_is_what_removing_it_saves():
    network, images = load_network("torchvision:resnet18", image_size=64)
    graph = ChannelGraph.trace(network, images)
    before = Cost.of(network, images)
    for group in (graph["conv1"], graph["layer2.0.conv1"]):
        after = Cost.of(shrink_(deepcopy(network), graph.plan({group.name: [0]})), images)
        expected = Cost(before.params - after.params, before.macs - after.macs)
        assert channel_cost(graph, group, network) == expected


def test_a_network_without_layers_to_prune():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 4, 4))

    assert coverage(graph, network).ratio == 0
    assert "unprunable: reaches" in _printed(graph, network)


def test_widths_are_those_of_layers_with_weights():
    assert layer_widths(_Halves()) == {"stem": 8, "up": 6, "head": 5}


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("torchvision:resnet18", "ResNet", 224),
        ("timm:resnet10t", "ResNet", 176),
        ("yolov8n-seg.yaml", "SegmentationModel", 640),
        ("yolov8n-cls.yaml", "ClassificationModel", 640),
    ],
)
def test_networks_by_name(name, kind, size):
    network, images = load_network(name)

    assert type(network).__name__ == kind
    assert images.shape == (1, 3, size, size)
    assert not network.training


@pytest.mark.parametrize(
    ("name", "size"),
    [("fcos_resnet50_fpn", (3, 224, 224)), ("lraspp_mobilenet_v3_large", (3, 224, 224)), ("r3d_18", (3, 16, 112, 112))],
)
def test_torchvision_has_more_than_classifiers_and_nothing_is_downloaded(monkeypatch, name, size):
    monkeypatch.setattr("torch.hub.download_url_to_file", None)
    network, images = load_network(f"torchvision:{name}")

    assert images.shape == (1, *size)
    smaller = images[..., :64, :64] if name == "r3d_18" else images
    assert ChannelGraph.trace(network, smaller).groups


def test_image_size():
    assert load_network("torchvision:resnet18", image_size=96)[1].shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet50", ValueError, r"torchvision:NAME .* or timm:NAME"),
        ("torchvision:resnt50", ValueError, "torchvision has no model 'resnt50'. Did you mean resnet50"),
        ("timm:convnext_tinny", ValueError, "timm has no model 'convnext_tinny'. Did you mean convnext_tiny"),
        ("torchvision:zzzzzz", ValueError, "It has .* models, such as"),
        ("torchvision:raft_small", ValueError, "takes two images"),
        ("yolo8n.yaml", FileNotFoundError, r"no configuration 'yolo8n.yaml'.* Did you mean yolov8n.yaml"),
        ("missing.ckpt", FileNotFoundError, "There is no file 'missing.ckpt'"),
        ("missing.pt", FileNotFoundError, "There is no file 'missing.pt'"),
    ],
)
def test_unknown_networks(name, error, message):
    with pytest.raises(error, match=message):
        load_network(name)
