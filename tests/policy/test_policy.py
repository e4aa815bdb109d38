"""Which groups take part in an event: layers that are not trained stay as they are."""

import pytest
import torch
from torch import nn

from lit_prune import ChannelGraph
from lit_prune.criteria import Magnitude
from lit_prune.policy.history import Record
from lit_prune.policy.policy import PruningPolicy
from lit_prune.policy.scope import Scope
from lit_prune.select import Uniform
from testing.invariant import randomise_
from tests.toys import network

POLICY = PruningPolicy(Scope(), Magnitude(), Uniform())


def candidates(module, *inputs, **options):
    graph = ChannelGraph.trace(module, *inputs)
    # With something that was taken back before, no group at all is no error.
    groups, skipped = POLICY.candidates(module, graph, Record(barred=["something"]), **options)
    skipped.pop("something", None)
    return [group.name for group in groups], skipped


def frozen(module, *names):
    for name in names:
        module.get_submodule(name).requires_grad_(False)
    return module


IMAGE = torch.zeros(1, 3, 8, 8)


def test_a_frozen_backbone_behind_a_trained_head_stays_whole():
    models = pytest.importorskip("torchvision.models")
    module = models.resnet18(weights=None).requires_grad_(False)
    module.fc.requires_grad_(True)
    names, skipped = candidates(module, torch.zeros(1, 3, 64, 64))
    assert names == []
    assert skipped["layer4.0.conv2"] == "is not trained (requires_grad=False)"


@pytest.mark.parametrize(
    ("still", "names"),
    [
        ([], ["0.0", "2.0"]),
        # A layer, and the norm behind it.
        (["2.0", "2.1"], ["0.0"]),
        # Only the norm learns, or only the layer.
        (["2.0"], ["0.0", "2.0"]),
        (["2.1"], ["0.0", "2.0"]),
        # One of two coupled layers: it would lose channels that it can't make up for.
        (["1"], ["2.0"]),
        (["0"], ["2.0"]),
        (["1.norm"], ["0.0", "2.0"]),
        # What reads the channels is no matter.
        (["3"], ["0.0", "2.0"]),
        (["2"], ["0.0"]),
    ],
)
def test_the_layers_that_make_channels_and_their_norms_decide(still, names):
    assert candidates(frozen(network(), *still), IMAGE)[0] == names


def test_where_none_is_left_the_reasons_are_told():
    module = network().requires_grad_(False)
    with pytest.raises(ValueError, match=r"can lose a channel now: 0\.0 is not trained \(requires_grad=False\)"):
        POLICY.candidates(module, ChannelGraph.trace(module, IMAGE), Record())


def test_the_reason_names_the_layer():
    _, skipped = candidates(frozen(network(), "1"), IMAGE)
    assert skipped == {"0.0": "coupled with 1.conv, which is not trained (requires_grad=False)"}


def test_depthwise_layers_count_as_layers():
    for still, names in (("1", []), ("2", ["0"])):
        module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1))
        assert candidates(frozen(module, still), IMAGE)[0] == names


def test_pieces_of_one_split_stay_where_one_is_not_trained():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            a, b = self.stem(x).chunk(2, 1)
            return self.two(a * self.one(b))

    assert candidates(frozen(Gate(), "one"), IMAGE)[0] == []


def test_all_may_be_trained_by_then():
    module = network().requires_grad_(False)
    assert candidates(module, IMAGE)[0] == []
    assert candidates(module, IMAGE, all_trained=True)[0] == ["0.0", "2.0"]


def test_tied_weights_are_trained_under_each_name():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten())
    module[3].weight = module[2].weight
    assert candidates(randomise_(module), IMAGE)[1].get("1") is None
