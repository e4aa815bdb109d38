"""The invariant on published architectures: a shrunk network computes what its masked twin does."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_prune import ChannelGraph, shrink_
from testing import packages
from testing.zoo import LESS, TOLERANCE, build, check, names, shares, trains

pytest.importorskip("ultralytics")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

SOURCES = ("ultralytics", "torchvision", "timm", *packages.SOURCES)
# Convolutions' channels that can be pruned, of all but the network's outputs, where `LESS` has no other figure.
SHARE = 0.99
# One of each kind of block: they take about a minute together.
QUICK = frozenset(
    """
    ultralytics/yolov8n.yaml ultralytics/yolo11n.yaml torchvision/resnet18 torchvision/mobilenet_v3_small
    torchvision/shufflenet_v2_x0_5 timm/test_convnext timm/test_vit timm/test_byobnet timm/nf_resnet26
    smp/Unet-resnet18 transformers/mobilevit transformers/encodec diffusers/unet monai/unetr kornia/hardnet
    """.split()
)


def _all() -> list[Any]:
    found = [name for source in SOURCES for name in names(source)]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in found]


@pytest.mark.parametrize("name", _all())
def test_architectures_are_exact_and_train(name: str) -> None:
    source = name.partition("/")[0]
    if source in packages.SOURCES:
        pytest.importorskip(packages.SOURCES[source], reason="It comes with the extra `zoo`.")
    case = build(name)
    found = check(case)
    assert found.worst <= TOLERANCE
    share, (least, reason) = shares(found.graph, case.network), LESS.get(name, (SHARE, ""))
    assert share.convolutions >= least or share.convolutional < 0.5, share.reasons
    assert not reason or any(reason in other for other in share.reasons), share.reasons
    trains(replace(case, network=shrink_(copy.deepcopy(case.network), found.plan)))


def test_the_lists_are_as_long_as_they_claim() -> None:
    assert len(names("timm")) >= 150
    assert len(names("ultralytics")) >= 60
    assert sum(len(names(source)) for source in packages.SOURCES) >= 75
    known = {name for source in SOURCES for name in names(source)}
    assert known >= LESS.keys() | QUICK


def test_of_a_detector_all_but_the_outputs_can_go() -> None:
    network = build("ultralytics/yolov8n.yaml").network
    graph = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    # The last convolution of each branch of the head: its width is the number of outputs. (DFL has one channel.)
    assert set(graph.unprunable) == {f"model.22.cv{branch}.{level}.2" for branch in (2, 3) for level in range(3)}
    assert set(graph.unprunable.values()) == {"reaches the network's output"}
    assert shares(graph, network).channels == 1.0


def test_a_network_that_ran_before_is_as_prunable() -> None:
    network = build("ultralytics/yolov8n.yaml").network
    before = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    # The head now holds anchors of the shapes that it saw.
    network(torch.zeros(1, 3, 64, 64))
    after = ChannelGraph.trace(network, torch.zeros(1, 3, 64, 64))
    assert after.unprunable == before.unprunable
    assert [(group.name, group.size) for group in after.groups] == [(g.name, g.size) for g in before.groups]
