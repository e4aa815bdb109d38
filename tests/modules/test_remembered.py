"""Integers that were widths follow, so that branches can be merged and heads built after pruning."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph, prune_, shrink_
from lit_prune.surgery.adoption import adopt_shapes_
from testing.deployment import MERGING, measure
from testing.invariant import check_invariant


class Merging(nn.Module):
    """Two branches and an identity, merged by numbers that only the merging reads."""

    def __init__(self, c1, c2, groups=1):
        super().__init__()
        self.c1, self.out_chs, self.groups, self.kernel_size, self.num_heads = c1, c2, groups, 3, c2
        self.wide = nn.Conv2d(c1, c2, 3, padding=1, groups=groups, bias=False)
        self.narrow = nn.Conv2d(c1, c2, 1, groups=groups, bias=False)
        self.identity = nn.BatchNorm2d(c1) if c1 == c2 else None

    def forward(self, x):
        y = self.wide(x) + self.narrow(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))

    def merged(self):
        conv = nn.Conv2d(self.c1, self.out_chs, 3, padding=1, groups=self.groups)
        kernel = self.wide.weight + nn.functional.pad(self.narrow.weight, [1] * 4)
        bias = torch.zeros(self.out_chs)
        if self.identity is not None:
            norm, inputs = self.identity, self.c1 // self.groups
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            one = torch.zeros(self.c1, inputs, 3, 3)
            one[torch.arange(self.c1), torch.arange(self.c1) % inputs, 1, 1] = 1
            kernel = kernel + one * scale.reshape(-1, 1, 1, 1)
            bias = norm.bias - norm.running_mean * scale
        conv.weight.data, conv.bias.data = kernel.detach(), bias.detach()
        return nn.Sequential(conv, nn.ReLU())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(Merging(8, 16), Merging(16, 16), Merging(16, 16, groups=16), Merging(16, 12))
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))

    def merge(self):
        self.blocks = nn.Sequential(*(block.merged() for block in self.blocks))
        return self


def plan(net, start=0):
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    # Of each group another number.
    return graph.plan({g.name: range(1 + (start + n) % 3) for n, g in enumerate(graph.groups)})


def test_branches_are_merged_after_one_cut_and_another_and_after_loading():
    images = torch.rand(2, 3, 8, 8)
    net = Net().eval()
    for number in range(2):
        prune_(net, plan(net, number))
        torch.testing.assert_close(copy.deepcopy(net).merge()(images), net(images), rtol=1e-4, atol=1e-5)
        again = pickle.loads(pickle.dumps(net))
        torch.testing.assert_close(again.merge()(images), net(images), rtol=1e-4, atol=1e-5)
    loaded = Net().eval()
    adopt_shapes_(loaded, net.state_dict())
    loaded.load_state_dict(net.state_dict())
    torch.testing.assert_close(loaded.merge()(images), net(images), rtol=1e-4, atol=1e-5)
    # Numbers with another meaning stay, whatever they are equal to.
    assert [(block.num_heads, block.kernel_size) for block in net.blocks] == [(16, 3), (16, 3), (16, 3), (12, 3)]


def test_a_number_that_the_forward_reads_is_left_as_the_probe_has_seen_it():
    class Reads(Merging):
        def scaled(self, x):
            return x / self.out_chs

        def forward(self, x):
            return self.scaled(super().forward(x))

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Reads(8, 16), nn.Conv2d(16, 2, 1))
    shrink_(net, plan(net))
    assert net[1].wide.out_channels < 16
    assert (net[1].c1, net[1].out_chs) == (net[1].wide.in_channels, 16)


def test_a_number_that_may_be_one_of_two_widths_is_named():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden_dim = 16
            self.first, self.second, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x):
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    net = nn.Sequential(Wide())
    with pytest.warns(UserWarning, match=r"0.hidden_dim = 16 may be widths that are gone.*register_attributes"):
        prune_(net, plan(net))
    assert net[0].hidden_dim == 16


def test_what_features_a_network_of_timm_hands_out_follows():
    timm = pytest.importorskip("timm")

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("resnet10t", features_only=True, pretrained=False)
            self.heads = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in self.backbone.feature_info.channels())

        def forward(self, x):
            return [head(each) for head, each in zip(self.heads, self.backbone(x), strict=True)]

    net, images = Pyramid().eval(), torch.zeros(1, 3, 32, 32)
    graph = ChannelGraph.trace(net, images)
    pruned = shrink_(copy.deepcopy(net), graph.plan({g.name: range(1 + n) for n, g in enumerate(graph.groups)}))
    widths = [each.shape[1] for each in pruned.backbone(images)]
    assert pruned.backbone.feature_info.channels() == widths
    assert net.backbone.feature_info.channels() == [64, 64, 128, 256, 512] != widths


def test_a_classifier_of_timm_can_be_replaced():
    timm = pytest.importorskip("timm")
    net, images = timm.create_model("resnet10t", pretrained=False).eval(), torch.zeros(1, 3, 32, 32)
    graph = ChannelGraph.trace(net, images)
    shrink_(net, graph.plan({g.name: range(1 + n) for n, g in enumerate(graph.groups)}))
    net.reset_classifier(5)
    assert net(images).shape == (1, 5)


def test_an_encoder_made_of_a_classifier_may_have_let_its_head_go():
    class Encoder(nn.Sequential):
        num_features = 16

        def get_classifier(self):
            return self.head

    net = nn.Sequential(Encoder(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)), nn.Conv2d(8, 2, 1))
    net[0].num_features = 16
    shrink_(net, plan(net))
    assert net[0].num_features == net[0][0].out_channels < 16


def scaled(x, block):
    return x / block.out_chs


def test_a_number_that_a_function_beside_the_class_reads_is_found_by_the_probe():
    class Reads(Merging):
        def forward(self, x):
            return scaled(super().forward(x), self)

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Reads(8, 16), nn.Conv2d(16, 2, 1))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    assert "can't be narrowed" in graph.unprunable["1.wide"]
    assert check_invariant(net, torch.randn(1, 3, 8, 8)).worst < 1e-4


def test_a_kernel_that_an_earlier_merge_has_left_is_forgotten():
    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    net = nn.Sequential(nn.Conv2d(3, 16, 1), conv.RepConv(16, 16, bn=True), nn.Conv2d(16, 2, 1)).eval()
    images = torch.rand(1, 3, 8, 8)
    net[1].get_equivalent_kernel_bias()
    prune_(net, plan(net))
    wanted = net(images)
    net[1].fuse_convs()
    net[1].forward = net[1].forward_fuse
    torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-5)


QUICK = ["timm/mobileone_s0", "timm/fastvit_t8", "timm/lcnetv2_base"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*QUICK, "timm/repvgg_a0", "timm/ghostnetv3_100", "timm/repvit_m0_9", "timm/repghostnet_050", "timm/levit_128s"]
    + [f"timm/{name}" for name in MERGING]
    + [
        f"ultralytics/{name}.yaml" for name in ("yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolov6n", "yolov8n-world")
    ],
)
def test_what_the_dense_network_can_be_deployed_as_the_pruned_one_can(name):
    timm = pytest.importorskip("timm")
    pytest.importorskip("ultralytics")
    source, _, model = name.partition("/")
    if source == "timm" and not timm.is_model(model):
        pytest.skip("this timm has no such network")
    found = measure(name)
    assert found["dense"] < 1e-4
    assert found["differs"] < 1e-4
