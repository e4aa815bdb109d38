"""Copies that a forward may change at will."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lit_prune import ChannelGraph, PruningPlan
from lit_prune.graph.copying import copy_module
from lit_prune.graph.skeleton import remembered, replica, skeleton, twin


class Counts(nn.Module):
    """Counts its forwards in a buffer, and keeps what it saw."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(8))
        self.cache: dict[str, Any] = {"scale": torch.ones(3), "sizes": []}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.conv(x)
        self.seen.add_(y.mean((0, 2, 3)))
        self.cache["sizes"].append(tuple(x.shape))
        return self.out(y)


def storages(module: nn.Module) -> set[int]:
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def test_a_trace_leaves_counters_and_caches_as_they_were() -> None:
    net = Counts()
    net(torch.ones(1, 3, 4, 4))
    seen = net.seen.clone()
    for _ in range(2):
        graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
    assert int(net.calls) == 1
    assert torch.equal(net.seen, seen)
    assert net.cache["sizes"] == [(1, 3, 4, 4)]
    assert "conv" in graph.unprunable or [group.name for group in graph.groups] == ["conv"]


def test_a_replica_has_the_values_and_shares_no_storage() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    copied = replica(net)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), copied.state_dict().values(), strict=True))
    assert not storages(net) & storages(copied)
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in net.parameters()]


def test_a_skeleton_is_on_meta_and_its_twin_can_be_cut_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    first = skeleton(net)
    keep = torch.tensor([0, 2])
    second = twin(first, PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.running_mean": {0: keep}}))
    assert all(tensor.is_meta for tensor in (*first.parameters(), *first.buffers()))
    assert second[0].weight.shape == (2, 3, 1, 1)
    assert second[0].out_channels == 2
    assert second[1].running_mean.shape == (2,)
    assert isinstance(second[0].bias, nn.Parameter)
    assert first[0].weight.shape == (4, 3, 1, 1)
    assert first[0].out_channels == 4
    assert first[1].running_mean.shape == net[1].running_mean.shape == (4,)
    assert not net[0].weight.is_meta


def test_a_twin_counts_for_itself() -> None:
    net = Counts()
    first = skeleton(net)
    second = twin(first)
    second.calls = torch.zeros((), device="meta")
    second.cache["sizes"].append(1)
    third = twin(first)
    assert third.calls is not first.calls
    assert torch.equal(remembered(third.calls), torch.tensor(0))
    assert third.cache["sizes"] == []


def test_the_twin_of_a_replica_has_values_of_its_own() -> None:
    first = replica(nn.Linear(4, 3))
    second = twin(first, PruningPlan({"weight": {1: torch.tensor([1, 3])}}))
    assert torch.equal(second.weight, first.weight[:, [1, 3]])
    assert not storages(first) & storages(second)


def test_what_is_one_stays_one() -> None:
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    net[1].weight = net[0].weight
    net.append(net[0])
    net.aside = [net[1]]
    copied = replica(net)
    assert copied[0].weight is copied[1].weight is not net[0].weight
    assert copied[2] is copied[0] is not net[0]
    assert copied.aside[0] is copied[1]


def test_hooks_stay_behind_but_for_those_of_torch() -> None:
    called = []
    net = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 2)))
    nn.utils.spectral_norm(net[0])
    net.register_forward_hook(lambda *_: called.append("forward"))
    net[0].register_state_dict_pre_hook(lambda *_: called.append("state"))
    copied = replica(net.eval())
    assert not copied._forward_hooks
    assert not copied[0]._state_dict_pre_hooks
    assert len(copied[0]._forward_pre_hooks) == 1
    x = torch.ones(1, 3)
    assert torch.equal(copied(x), nn.Sequential.forward(net, x))
    assert not called
    assert len(net._forward_hooks) == 1


def test_nothing_of_a_copy_is_compiled() -> None:
    net = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 2), backend="eager"))
    net[0].compile(backend="eager")
    copied = replica(net)
    assert all(module._compiled_call_impl is None for module in copied.modules())
    assert type(copied[1]).__name__ == "_Uncompiled"
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert copied[0].weight is not net[0].weight
    assert net[0]._compiled_call_impl is not None


def test_containers_are_copied_and_what_cannot_be_is_shared() -> None:
    net = nn.Linear(2, 2)
    net.table = {"a": [1, {2}], "t": (torch.ones(1), 3)}
    net.table["self"] = net.table
    net.lock = threading.Lock()
    copied = copy_module(net, lambda tensor, _: tensor.clone())
    assert copied.table is not net.table
    assert copied.table["self"] is copied.table
    assert copied.table["a"] == [1, {2}]
    assert copied.table["a"] is not net.table["a"]
    assert copied.table["t"][0] is not net.table["t"][0]
    assert copied.lock is net.lock
