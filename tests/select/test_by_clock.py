"""The clock decides how far a removal goes; here a clock that can be relied on: one that counts."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_prune import ArgumentError, ChannelPruning, plan_pruning, shrink_
from lit_prune.errors import RehearsalError, SelectionError
from lit_prune.select import LatencyBudget
from tests.select.test_spread import chain
from tests.toys import fitted

SHAPE = [2, 3, 16, 16]
IMAGES = torch.zeros(1, 3, 16, 16)


def ticks(network, images):
    """A millisecond for each thousand elements of weights, and one for the call."""
    with torch.no_grad():
        network(images)
    assert not network.training
    assert images.shape == torch.Size(SHAPE)
    return 1 + sum(parameter.numel() for parameter in network.parameters()) / 1000


def left(net, selection, **options):
    return shrink_(copy.deepcopy(net), plan_pruning(net, IMAGES, selection=selection, round_to=1, **options))


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_a_limit_is_met_and_almost_used_up(spread):
    torch.manual_seed(0)
    net = chain().eval()
    whole = ticks(net, torch.zeros(SHAPE))
    cut = left(net, LatencyBudget(SHAPE, spread, at_most=f"{0.6 * whole} ms", runtime=ticks))
    assert 0.55 * whole < ticks(cut.eval(), torch.zeros(SHAPE)) <= 0.6 * whole


def test_a_ratio_is_that_of_the_whole_networks_latency():
    torch.manual_seed(0)
    net = chain().eval()
    whole = ticks(net, torch.zeros(SHAPE))
    cut = left(net, LatencyBudget(SHAPE, runtime=ticks), amount=0.4)
    assert 0.55 * whole < ticks(cut.eval(), torch.zeros(SHAPE)) <= 0.6 * whole


def test_by_torch_a_narrower_network_is_no_slower_than_asked():
    """What the clock says here is not asserted: only that a budget which nothing can miss removes nothing."""
    net = chain().eval()
    budget = LatencyBudget(SHAPE, at_most="1000000 ms")
    assert not plan_pruning(net, IMAGES, selection=budget, round_to=1)
    assert budget.measured > 0


def test_in_a_trainer_a_part_of_the_module_is_timed_and_left_as_it_was():
    seen = []

    def counted(network, images):
        seen.append(type(network))
        return sum(parameter.numel() for parameter in network.parameters()) / 1000

    selection = LatencyBudget([1, 3, 12, 12], "global", at_most=4.0, network="net", runtime=counted)
    pruning = ChannelPruning(None, [1, 2], selection=selection, round_to=1, verbose=False)
    module = fitted(pruning)
    assert set(seen) == {nn.Sequential}
    assert module.training
    assert counted(module.net, None) <= 4.0 < pruning.events[0]["params"][1] / 1000


def test_what_can_not_be_timed_is_told():
    net = chain().eval()
    with pytest.raises(SelectionError, match=r"can't time Sequential on an input of shape \[2, 5, 16, 16\].*`network`"):
        plan_pruning(net, IMAGES, selection=LatencyBudget([2, 5, 16, 16], at_most=1.0))
    with pytest.raises(SelectionError, match="submodule 'body', but there is none"):
        plan_pruning(net, IMAGES, selection=LatencyBudget(SHAPE, at_most=1.0, network="body"))
    with pytest.raises(SelectionError, match="out of reach"):
        plan_pruning(net, IMAGES, selection=LatencyBudget(SHAPE, at_most=0.5, runtime=ticks))
    with pytest.raises(ArgumentError, match="shape is that of an example"):
        LatencyBudget([])
    with pytest.raises(ArgumentError, match="at_most must be in ms"):
        LatencyBudget(SHAPE, at_most="2 MB")


def test_each_whole_network_is_timed_anew_and_a_pruned_one_can_not_be():
    torch.manual_seed(0)
    net = chain().eval()
    budget = LatencyBudget(SHAPE, runtime=ticks)
    left(net, budget, amount=0.4)
    wide = chain().eval()
    wide[2], wide[4] = nn.Conv2d(16, 128, 3, padding=1), nn.Conv2d(128, 32, 3, padding=1)
    whole = ticks(wide.eval(), torch.zeros(SHAPE))
    assert 0.55 * whole < ticks(left(wide, budget, amount=0.4).eval(), torch.zeros(SHAPE)) <= 0.6 * whole


def test_a_resumed_run_needs_a_limit(tmp_path):
    def pruning(**options):
        selection = LatencyBudget([1, 3, 12, 12], network="net", runtime=counted, **options)
        return ChannelPruning(None if options else 0.5, [1, 2], selection=selection, round_to=1, verbose=False)

    def counted(network, images):
        return sum(parameter.numel() for parameter in network.parameters()) / 1000

    fitted(pruning(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    with pytest.raises(RehearsalError, match=r"pruned already\. Give a limit"):
        fitted(pruning(), ckpt_path=tmp_path / "epoch=1.ckpt")
    resumed = fitted(pruning(at_most=4.0), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert counted(resumed.net, None) <= 4.0
