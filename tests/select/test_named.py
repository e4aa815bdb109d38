"""Layers get the widths that they are named with, or those of another network."""

import copy

import pytest
import torch
from torch import nn

from lit_prune import ArgumentError, ChannelPruning, plan_pruning, shrink_
from lit_prune.errors import CheckpointError, SelectionError
from lit_prune.select import NamedWidths
from tests.select.test_spread import Halves, chain
from tests.toys import fitted, network, widths

IMAGES = torch.zeros(1, 3, 16, 16)


def left(net, selection):
    return shrink_(copy.deepcopy(net), plan_pruning(net, IMAGES, selection=selection))


def test_numbers_and_ratios_by_pattern_the_first_counts():
    cut = left(chain().eval(), NamedWidths({"2": 10, "[0-9]": 0.25}))
    assert [cut[layer].out_channels for layer in (0, 2, 4)] == [4, 10, 8]


def test_what_is_not_named_stays():
    cut = left(chain().eval(), NamedWidths({"4": 5}))
    assert [cut[layer].out_channels for layer in (0, 2, 4)] == [16, 64, 5]


def test_those_with_the_lowest_scores_go():
    net = chain().eval()
    with torch.no_grad():
        net[0].weight[[1, 7]] *= 100
    cut = left(net, NamedWidths({"0": 2}))
    assert torch.equal(cut[0].weight, net[0].weight[[1, 7]])


@pytest.mark.parametrize("source", ["module", "state dict", "file", "checkpoint"])
def test_widths_are_copied(source, tmp_path):
    torch.manual_seed(0)
    net = network().eval()
    pattern = shrink_(copy.deepcopy(net), plan_pruning(net, IMAGES, amount=0.6, criterion="random", round_to=1))
    state = pattern.state_dict()
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": {f"net.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "c.ckpt")
    given = {"module": pattern, "state dict": state, "file": tmp_path / "w.pt", "checkpoint": str(tmp_path / "c.ckpt")}
    cut = left(net, NamedWidths.like(given[source]))
    assert {name: value.shape for name, value in cut.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    assert any(value.shape != net.state_dict()[name].shape for name, value in state.items())


def test_in_a_trainer_events_go_a_part_of_the_way():
    pruning = ChannelPruning(None, [1, 2], selection=NamedWidths({"net.2.0": 12}), round_to=1, verbose=False)
    module = fitted(pruning)
    assert [event["channels"]["net.2.0"] for event in pruning.events] == [[32, 22], [22, 12]]
    assert widths(module)["net.2.0.weight"][0] == 12


def test_halves_that_must_stay_alike_are_told_so():
    net = Halves().eval()
    with pytest.raises(SelectionError, match="must stay equally wide"):
        left(net, NamedWidths({"stem": 5, "stem#2": 7}))
    cut = left(net, NamedWidths({"stem*": 5}))
    assert cut.stem.out_channels == 10


def test_mistakes_are_told():
    net = chain().eval()
    with pytest.raises(SelectionError, match=r"no layer that can be pruned is named 'stem'"):
        left(net, NamedWidths({"stem": 5}))
    with pytest.raises(SelectionError, match="is to be 99 wide, but has 16 channels"):
        left(net, NamedWidths({"0": 99}))
    with pytest.warns(UserWarning, match="0 should be narrower, but take no part"):
        plan_pruning(net, IMAGES, selection=NamedWidths({"0": 4, "2": 24}), exclude=["0"])
    for wrong in (0, -3, 2.5, 1.5):
        with pytest.raises(ArgumentError, match="the width of 'a' must be a whole number"):
            NamedWidths({"a": wrong})
    with pytest.raises(ArgumentError, match="at least one pattern"):
        NamedWidths({})
    with pytest.raises(ArgumentError, match="has none"):
        NamedWidths.like(nn.ReLU())
    with pytest.raises(ArgumentError, match="leave one of the two"):
        ChannelPruning(0.5, [1], selection=NamedWidths({"a": 5}))


def test_other_names_are_refused(tmp_path):
    net = chain().eval()
    for other in (nn.Linear(3, 3), {f"model.{name}": value for name, value in network().state_dict().items()}):
        with pytest.raises(SelectionError, match="was given other names than those of this network"):
            left(net, NamedWidths.like(other))
    with pytest.raises(TypeError, match="takes a network, its state dict"):
        NamedWidths.like(None)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(CheckpointError):
        NamedWidths.like(tmp_path / "text.pt")
