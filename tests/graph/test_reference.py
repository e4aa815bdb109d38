"""mask_ where a forward takes statistics itself: removed channels are left out, however the network is entered."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, PruningPlan, mask_, shrink_
from testing.invariant import check_invariant
from tests.graph.tiny import random_images


class Net(nn.Module):
    """A norm by hand between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.features(x))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def _plan(net: nn.Module, *gone: int) -> PruningPlan:
    return ChannelGraph.trace(net, random_images()).plan({"body": gone})


def _close(first: nn.Module, second: nn.Module) -> bool:
    return torch.allclose(first(random_images()), second(random_images()), atol=1e-5)


def test_zeros_alone_are_another_function(net: Net) -> None:
    plan = _plan(net, 1, 4)
    zeroed = mask_(copy.deepcopy(net), PruningPlan(plan.kept, plan.sizes))
    shrunk = shrink_(copy.deepcopy(net), plan)
    assert not _close(zeroed, shrunk)
    assert _close(mask_(copy.deepcopy(net), plan), shrunk)


def test_plans_tell_where_and_carry_it(net: Net) -> None:
    plan = _plan(net, 1)
    assert plan.reduced_in == {""}
    assert plan.with_prefix("inner.").reduced_in == {"inner"}
    assert PruningPlan.from_state_dict(plan.state_dict()).reduced_in == plan.reduced_in
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    assert not ChannelGraph.trace(plain, random_images()).plan({"0": [1]}).reduced_in


def test_it_copies_and_pickles(net: Net) -> None:
    masked = mask_(net, _plan(net, 1, 4))
    before = masked(random_images())
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert torch.equal(twin(random_images()), before)


def test_two_masks_leave_out_what_either_does(net: Net) -> None:
    shrunk = shrink_(copy.deepcopy(net), _plan(net, 1, 4))
    first, second = _plan(net, 1), _plan(net, 4)
    assert _close(mask_(mask_(net, first), second), shrunk)


def test_a_cut_network_forgets_its_mask(net: Net) -> None:
    shrunk = shrink_(copy.deepcopy(net), _plan(net, 1, 4))
    masked = mask_(net, _plan(net, 1, 4))
    partly = shrink_(copy.deepcopy(masked), _plan(Net(), 1))
    assert partly._forward_hooks
    assert _close(partly, shrunk)
    both = shrink_(masked, _plan(Net(), 1, 4))
    assert not both._forward_hooks
    assert not both.body._forward_pre_hooks
    assert _close(both, shrunk)


def test_a_failing_forward_leaves_nothing_open(net: Net) -> None:
    masked = mask_(copy.deepcopy(net), _plan(net, 1))
    before = masked(random_images())
    with pytest.raises(RuntimeError):
        masked(torch.zeros(1, 5, 4, 4))
    assert torch.equal(masked(random_images()), before)


def test_gradients_pass(net: Net) -> None:
    masked = mask_(net, _plan(net, 1, 4))
    masked(random_images()).sum().backward()
    assert net.leave.weight.grad is not None


def test_it_runs_as_a_part_of_another(net: Net) -> None:
    plan = _plan(net, 1, 4)
    outer, shrunk = nn.Sequential(copy.deepcopy(net), nn.ReLU()), nn.Sequential(copy.deepcopy(net), nn.ReLU())
    assert _close(mask_(outer, plan.with_prefix("0.")), shrink_(shrunk, plan.with_prefix("0.")))


class Reading(nn.Module):
    """Two recurrent layers whose last states are put side by side, beside a statistic of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layers, self.leave = nn.Linear(4, 6), nn.LSTM(6, 6, num_layers=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x - x.mean(-1, keepdim=True)
        return self.leave(self.layers(x)[0])


def test_layers_of_a_recurrent_one_lose_channels_of_their_own() -> None:
    assert check_invariant(Reading(), torch.randn(5, 1, 4)).worst < 1e-4
