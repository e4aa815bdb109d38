import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from lit_prune import ChannelGraph, shrink_
from lit_prune.activations import ActivationExtractor, sliced_block

CHAINS = {
    "yolov3-tiny.yaml": ("model.0.conv", "model.1", "model.2.conv"),
    "yolov5n.yaml": ("model.0.conv", "model.1.conv"),
    "yolov6n.yaml": ("model.0.conv", "model.1.conv"),
    "yolov8n.yaml": ("model.0.conv", "model.1.conv", "model.2.cv1.conv"),
    "yolov9t.yaml": ("model.0.conv", "model.1.conv"),
    "yolov10n.yaml": ("model.0.conv", "model.1.conv"),
    "yolo11n.yaml": ("model.0.conv", "model.1.conv"),
    "yolo12n.yaml": ("model.0.conv", "model.1.conv"),
    "yolo26n.yaml": ("model.0.conv", "model.1.conv"),
    "vgg11_bn": ("features.0", "features.4"),
    "alexnet": ("features.0", "features.3"),
}


def build(name):
    torch.manual_seed(0)
    network = DetectionModel(name, verbose=False) if name.endswith("yaml") else torchvision.models.get_model(name)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network


def hook_by_hand(network, layer, images):
    caught = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: caught.append(args[2].clone()))
    was = network.training
    network.eval()
    with torch.no_grad():
        network(images)
    network.train(was)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("name", CHAINS)
def test_hook_and_slice_agree_to_the_bit(name):
    network, layers = build(name), CHAINS[name]
    images = torch.rand(2, 3, 64, 64)
    with ActivationExtractor(network, layers) as extract:
        maps = extract(images)
    assert list(maps) == list(layers)
    for layer in layers:
        with torch.no_grad():
            assert torch.equal(maps[layer], sliced_block(network, layer)(images))


def test_all_layers_equal_hooks_by_hand():
    network = build("yolov8n.yaml")
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and "dfl" not in name]
    images = torch.rand(2, 3, 64, 64)
    with ActivationExtractor(network, layers) as extract:
        maps = extract(images)
    assert len(maps) == len(layers) > 60
    for layer in (layers[0], "model.4.m.1.cv2.conv", layers[-1]):
        assert torch.equal(maps[layer], hook_by_hand(network, layer, images))


def test_after_pruning_the_slice_fails_and_the_hook_does_not():
    network = build("yolov8s.yaml")
    images = torch.rand(1, 3, 64, 64)
    slices = {layer: sliced_block(network, layer) for layer in ("model.1.conv", "model.2.cv1.conv")}
    graph = ChannelGraph.trace(network, images)
    shrink_(network, graph.plan({"model.1.conv": range(0, 64, 2)}))
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"to have 32 channels, but got 64 channels instead"),
    ):
        slices["model.2.cv1.conv"](images)
    with ActivationExtractor(network, ["model.1.conv", "model.2.cv1.conv", "model.15.cv2.conv"]) as extract:
        maps = extract(images)
    assert maps["model.1.conv"].shape[1] == 32
    assert torch.equal(maps["model.15.cv2.conv"], hook_by_hand(network, "model.15.cv2.conv", images))
    # A slice made now is of the pruned network, and agrees again.
    with torch.no_grad():
        assert torch.equal(maps["model.2.cv1.conv"], sliced_block(network, "model.2.cv1.conv")(images))


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("yolov8n.yaml", "model.2.cv2.conv", r"model.2 \(C2f\) decides"),
        ("yolov8n.yaml", "model.15.cv1.conv", r"takes its input from \[-1, 6\]"),
        ("resnet18", "layer1.0.conv1", "decides"),
    ],
)
def test_no_slice_outside_of_a_plain_chain(name, layer, why):
    with pytest.raises(ValueError, match=why):
        sliced_block(build(name), layer)


class Counting(nn.Sequential):
    """Runs, counts, caches, draws and may fail."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 3)
        )
        self.register_buffer("cache", torch.zeros(1))
        self.calls = 0
        self.fails = False

    def forward(self, x):
        self.calls += 1
        self.seen = x.shape
        self.cache = torch.ones(3)
        random.random()
        np.random.rand()  # noqa: NPY002
        x = super().forward(x + torch.rand(1))
        if self.fails:
            raise RuntimeError("broken")
        return x


def snapshot(net):
    return (
        [module.training for module in net.modules()],
        {name: value.clone() for name, value in net.state_dict().items()},
        net.calls,
        hasattr(net, "seen"),
        [len(module._forward_hooks) for module in net.modules()],
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(first, second):
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=0)
    assert first[0] == second[0]
    assert first[2:7] == second[2:7]
    assert torch.equal(first[7], second[7])
    assert first[8] == second[8]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("stop_early", [False, True])
def test_leaves_no_trace_whatever_happens(fails, stop_early):
    net = Counting().train()
    net[2].eval()
    net.fails = fails
    images = torch.rand(2, 3, 8, 8)
    before = snapshot(net)
    with ActivationExtractor(net, ["0", "4"], stop_early=stop_early) as extract:
        # Stopped early, it never comes to where it fails.
        if fails and not stop_early:
            with pytest.raises(RuntimeError, match="broken"):
                extract(images)
        else:
            assert not extract(images)["0"].requires_grad
    assert_same(before, snapshot(net))


def test_raw_outputs_survive_an_activation_in_place():
    net = Counting().eval()
    with ActivationExtractor(net, ["0"], stop_early=False) as extract:
        assert extract(torch.rand(2, 3, 8, 8))["0"].min() < 0


def test_stops_after_the_last_layer():
    ran = []
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    net[2].register_forward_hook(lambda *_: ran.append(2))
    with ActivationExtractor(net, ["1", "0"]) as extract:
        extract(torch.rand(1, 3, 4, 4))
        assert not ran
    with ActivationExtractor(net, ["1", "0"], stop_early=False) as extract:
        extract(torch.rand(1, 3, 4, 4))
        assert ran == [2]


def test_keeps_what_reduce_returns_and_calls_it_in_forward_order():
    order = []

    def reduce(layer, output):
        order.append(layer)
        return output.mean(dim=(2, 3))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1))
    with ActivationExtractor(net, ["1", "0"], reduce=reduce) as extract:
        means = extract(torch.rand(5, 3, 4, 4))
    assert order == ["0", "1"]
    assert {layer: tuple(mean.shape) for layer, mean in means.items()} == {"1": (5, 6), "0": (5, 4)}


def test_sees_only_calls_that_go_through_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with ActivationExtractor(net, ["0"]) as extract:
        assert net(torch.rand(1, 3, 4, 4)).shape == (1, 4, 4, 4)
        maps, result = extract.run(lambda images: net(images).sum(), torch.rand(1, 3, 4, 4))
        assert result is None
    with ActivationExtractor(net, ["0"], stop_early=False) as extract:
        maps, result = extract.run(lambda images: net(images).sum(), torch.rand(1, 3, 4, 4))
        assert result == maps["0"].relu().sum()
    with pytest.raises(RuntimeError, match="no hooks here"):
        extract(torch.rand(1, 3, 4, 4))


def test_autocast_is_kept():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    with ActivationExtractor(net, ["0"]) as extract, torch.autocast("cpu", torch.bfloat16):
        assert extract(torch.rand(1, 3, 4, 4))["0"].dtype == torch.bfloat16


def test_compiled_network_is_seen():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    compiled = torch.compile(net, backend="eager")
    images = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        compiled(images)
    with ActivationExtractor(compiled, ["_orig_mod.0"], stop_early=False) as extract:
        assert torch.equal(extract(images)["_orig_mod.0"], net[0](images))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([], ValueError, "No layers are given"),
        (["features.0.conv"], ValueError, "has no layer 'features.0.conv'. Did you mean 'features.0'"),
        ([""], ValueError, "has no layer ''"),
    ],
)
def test_unknown_layers(layers, error, message):
    net = nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(3, 4, 1))})
    with pytest.raises(error, match=message):
        ActivationExtractor(net, layers)


def test_layers_that_do_not_run_or_give_no_tensor_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Conv2d(3, 4, 1)
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x):
            return self.lstm(x)

    with ActivationExtractor(Odd(), ["unused"]) as extract, pytest.raises(RuntimeError, match="did not run unused"):
        extract(torch.rand(2, 3, 4))
    with (
        ActivationExtractor(Odd(), ["lstm"]) as extract,
        pytest.raises(TypeError, match=r"lstm \(LSTM\) puts out a tup"),
    ):
        extract(torch.rand(2, 3, 4))
