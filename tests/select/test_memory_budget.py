"""A memory budget is met by what the shrunk network takes, and other layers keep their channels."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_prune import ArgumentError, ChannelPruning, PruningError, plan_pruning, shrink_
from lit_prune.cost import peak_memory
from lit_prune.errors import SelectionError
from lit_prune.report.tables import event_table
from lit_prune.select import Budgets, MacsBudget, MemoryBudget
from tests.toys import Classifier, fitted, network

IMAGES = torch.zeros(1, 3, 16, 16)


def narrowing() -> nn.Sequential:
    """What is large early and small later."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, 4, 1),
    )


def left(net, selection, **options):
    plan = plan_pruning(net, IMAGES, selection=selection, **{"round_to": 1, **options})
    return shrink_(copy.deepcopy(net), plan)


@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("net", [narrowing, network])
def test_a_limit_is_met_and_almost_used_up(net, spread):
    torch.manual_seed(0)
    net = net().eval()
    whole = peak_memory(net, IMAGES)
    selection = MemoryBudget(spread, at_most=0.6 * whole)
    cut = left(net, selection)
    assert 0.5 * whole < peak_memory(cut, IMAGES) <= 0.6 * whole
    peak = peak_memory(cut, IMAGES)
    assert selection.findings.items() >= {"memory": peak, "dense_memory": whole, "left B of activations": peak}.items()


def test_layers_where_there_is_room_keep_their_channels():
    net = narrowing()
    cut = left(net, MemoryBudget(at_most=0.6 * peak_memory(net, IMAGES)))
    assert cut[0].out_channels < 20
    assert [cut[2].out_channels, cut[4].out_channels] == [32, 64]


def test_precision_and_examples_count():
    net = narrowing()
    whole = peak_memory(net, IMAGES)
    same = [
        left(net, MemoryBudget(at_most=0.5 * whole)),
        left(net, MemoryBudget(at_most=0.125 * whole, precision="int8")),
        left(net, MemoryBudget(at_most=2 * whole, batch_size=4)),
    ]
    assert len({cut[0].out_channels for cut in same}) == 1


def test_what_is_out_of_reach_is_told():
    with pytest.raises(SelectionError, match="The wanted 100 B of activations are out of reach"):
        left(narrowing(), MemoryBudget(at_most=100))


def test_events_of_a_run_go_by_the_dense_network():
    pruning = ChannelPruning(0.5, [1, 2], selection=MemoryBudget("global"), round_to=1, verbose=False)
    dense = peak_memory(Classifier().net, torch.zeros(1, 3, 8, 8))
    module = fitted(pruning, max_epochs=3)
    memory = [event["findings"]["memory"] for event in pruning.events]
    assert memory[-1] == peak_memory(module.net, torch.zeros(1, 3, 8, 8)) <= 0.5 * dense
    assert 0.5 * dense < memory[0] <= 0.75 * dense
    assert {event["findings"]["dense_memory"] for event in pruning.events} == {dense}
    table = event_table(pruning.events[-1])
    assert "50% of the peak memory of activations" in str(table.title)
    assert "B of activations allowed" in str(table.caption)


def test_with_other_budgets():
    net = network().eval()
    whole = peak_memory(net, IMAGES)
    both = Budgets([MemoryBudget(at_most=0.7 * whole), MacsBudget(at_most=1e5)], spread="global")
    assert peak_memory(left(net, both), IMAGES) <= 0.7 * whole


def test_with_other_budgets_in_several_events():
    dense = peak_memory(Classifier().net, torch.zeros(1, 3, 8, 8))
    limits = Budgets([MemoryBudget(at_most=0.5 * dense), MacsBudget(at_most="1 GMACs")])
    pruning = ChannelPruning(None, [1, 2], selection=limits, round_to=1, verbose=False)
    module = fitted(pruning, max_epochs=3)
    memory = [event["findings"]["memory"] for event in pruning.events]
    assert 0.5 * dense < memory[0] <= 0.75 * dense
    assert memory[1] == peak_memory(module.net, torch.zeros(1, 3, 8, 8)) <= 0.5 * dense
    assert {event["findings"]["dense_memory"] for event in pruning.events} == {dense}


def test_a_network_that_was_cut_otherwise_needs_a_limit(tmp_path):
    first = ChannelPruning(0.3, [1], selection="uniform", round_to=1, verbose=False)
    fitted(first, ModelCheckpoint(tmp_path, filename="one"), max_epochs=2)
    second = ChannelPruning(0.6, [1, 2], selection=MemoryBudget(), round_to=1, verbose=False)
    with pytest.raises(PruningError, match="say by `at_most`"):
        fitted(second, max_epochs=4, ckpt_path=tmp_path / "one.ckpt")


def test_arguments():
    with pytest.raises(ArgumentError, match="precision"):
        MemoryBudget(precision="int4")
    with pytest.raises(ArgumentError, match="batch_size"):
        MemoryBudget(batch_size=0)
    with pytest.raises(ArgumentError, match="such as '2 MB'"):
        MemoryBudget(at_most="8 ms")
