"""The invariant on published architectures: a shrunk network computes what its masked twin does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, shrink_
from tests.networks import check_invariant, prunable_share, random_removal, raw_predictions, tensors, yolo

TOLERANCE = 1e-4

QUICK_YOLO = ["yolov8n.yaml", "yolo11n.yaml"]
SLOW_YOLO = [
    "yolov3-tiny.yaml",
    "yolov5n.yaml",
    "yolov6n.yaml",
    "yolov9t.yaml",
    "yolov10n.yaml",
    "yolo12n.yaml",
    "yolo26n.yaml",
]
QUICK_TORCHVISION = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
SLOW_TORCHVISION = [
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "vgg11",
    "vgg11_bn",
    "regnet_y_400mf",
    "googlenet",
    "convnext_tiny",
]


def _slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", [*QUICK_YOLO, *_slow(SLOW_YOLO)])
def test_detectors_are_exact_and_train(name: str) -> None:
    network, images = yolo(name), torch.randn(1, 3, 96, 96)
    check = check_invariant(network, images, forward=raw_predictions(images))
    assert check.worst < TOLERANCE
    assert not check.graph.unsupported
    _assert_trains(shrink_(copy.deepcopy(network), check.plan), torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize("name", [*QUICK_TORCHVISION, *_slow(SLOW_TORCHVISION)])
def test_classifiers_are_exact_and_train(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network, images = torchvision.models.get_model(name, weights=None), torch.randn(2, 3, 96, 96)
    check = check_invariant(network, images)
    assert check.worst < TOLERANCE
    assert not check.graph.unsupported
    _assert_trains(shrink_(copy.deepcopy(network), check.plan), images)


def _assert_trains(network: nn.Module, images: torch.Tensor) -> None:
    """Every parameter that trains gets a finite gradient of its own shape."""
    outputs = tensors(network.train()(images))
    sum(output.square().mean() for output in outputs).backward()
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_share_of_prunable_channels() -> None:
    network = yolo("yolov8n.yaml")
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    # The last convolution of each branch of the head: its width is the number of outputs. (DFL has one channel.)
    outputs = {f"model.22.cv{branch}.{level}.2" for branch in (2, 3) for level in range(3)}
    assert set(graph.frozen) == outputs
    assert prunable_share(network, graph, besides={*outputs, "model.22.dfl.conv"}) == 1.0
    assert random_removal(graph)


def test_a_network_that_ran_before_is_as_prunable() -> None:
    network = yolo("yolov8n.yaml").eval()
    before = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    # The head now holds anchors of the shapes that it saw.
    network(torch.zeros(1, 3, 64, 64))
    after = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    assert after.frozen == before.frozen
    assert [(group.name, group.size) for group in after.groups] == [(g.name, g.size) for g in before.groups]
