"""Norms over channels in a masked network: statistics of the kept channels only."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune import PruningPlan, mask_, shrink_
from lit_prune.surgery.kept_norms import KeptStatistics

KEEP = torch.tensor([0, 2, 3, 5])


def _plan(norm: nn.Module, keep: Tensor = KEEP) -> PruningPlan:
    return PruningPlan({name: {0: keep} for name, _ in norm.named_parameters()})


def _norm(kind: str) -> nn.Module:
    norm = {"layer": nn.LayerNorm(6), "rms": nn.RMSNorm(6), "group": nn.GroupNorm(2, 6)}[kind]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def _values() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) + 2


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_kept_channels_are_those_of_a_narrower_norm(kind: str) -> None:
    norm = _norm(kind)
    masked, shrunk = mask_(copy.deepcopy(norm), _plan(norm)), shrink_(copy.deepcopy(norm), _plan(norm))
    ours, theirs = masked(_values()), shrunk(_values()[:, KEEP])
    assert torch.allclose(ours[:, KEEP], theirs, atol=1e-6)
    assert not ours[:, [1, 4]].any()
    # Zeroing alone is another function.
    zeroed = norm(_values() * torch.zeros(6).index_fill_(0, KEEP, 1))
    assert not torch.allclose(zeroed[:, KEEP], theirs, atol=1e-2)


def test_the_function_called_by_a_module_of_ones_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)

    own = Own()
    masked, shrunk = mask_(copy.deepcopy(own), _plan(own)), shrink_(copy.deepcopy(own), _plan(own))
    assert torch.allclose(masked(_values())[:, KEEP], shrunk(_values()[:, KEEP]), atol=1e-6)


class Named(nn.Module):
    """A norm whose weight has a name of its own, or is a buffer."""

    def __init__(self, as_buffer: bool = False, weight: bool = True) -> None:
        super().__init__()
        values = torch.rand(6) + 0.5
        self.register_buffer("gain", values) if as_buffer else self.register_parameter("gain", nn.Parameter(values))
        self.shift, self.weighted = nn.Parameter(torch.randn(6)), weight

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain if self.weighted else None, self.shift)


@pytest.mark.parametrize("norm", [Named(), Named(as_buffer=True), Named(weight=False)], ids=["name", "buffer", "bias"])
def test_the_weight_may_have_any_name_and_be_a_buffer(norm: Named) -> None:
    plan = PruningPlan({"gain": {0: KEEP}, "shift": {0: KEEP}})
    masked, shrunk = mask_(copy.deepcopy(norm), plan), shrink_(copy.deepcopy(norm), plan)
    assert torch.allclose(masked(_values())[:, KEEP], shrunk(_values()[:, KEEP]), atol=1e-6)


def test_a_forward_may_use_the_weight_of_a_child() -> None:
    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = _norm("layer")

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.norm.weight.shape, self.norm.weight, self.norm.bias)

    plan, net = PruningPlan({"norm.weight": {0: KEEP}, "norm.bias": {0: KEEP}}), Borrows()
    masked, shrunk = mask_(copy.deepcopy(net), plan), shrink_(copy.deepcopy(net), plan)
    assert torch.allclose(masked(_values())[:, KEEP], shrunk(_values()[:, KEEP]), atol=1e-6)


def test_batch_norm_of_buffers_alone() -> None:
    net = nn.Sequential(torchvision.ops.FrozenBatchNorm2d(6))
    plan = PruningPlan({f"0.{name}": {0: KEEP} for name, _ in net[0].named_buffers()})
    images = _values()[:, :, None, None]
    masked, shrunk = mask_(copy.deepcopy(net), plan), shrink_(copy.deepcopy(net), plan)
    assert torch.allclose(masked(images)[:, KEEP], shrunk(images[:, KEEP]), atol=1e-6)


def test_two_masks_keep_what_both_keep() -> None:
    norm = _norm("layer")
    both = mask_(mask_(copy.deepcopy(norm), _plan(norm)), _plan(norm, torch.tensor([0, 1, 2, 3])))
    keep = torch.tensor([0, 2, 3])
    shrunk = shrink_(copy.deepcopy(norm), _plan(norm, keep))
    assert torch.allclose(both(_values())[:, keep], shrunk(_values()[:, keep]), atol=1e-6)


def test_a_masked_network_that_is_shrunk_forgets_its_mask() -> None:
    norm = _norm("layer")
    shrunk = shrink_(mask_(copy.deepcopy(norm), _plan(norm)), _plan(norm))
    assert not shrunk._forward_hooks
    assert not shrunk._forward_pre_hooks
    narrower = nn.LayerNorm(4)
    narrower.load_state_dict(shrunk.state_dict())
    assert torch.equal(shrunk(_values()[:, KEEP]), narrower(_values()[:, KEEP]))


def test_a_mask_stays_where_the_cut_is_smaller() -> None:
    norm = _norm("layer")
    # Channels 1 and 4 are masked, only 1 is cut.
    cut = torch.tensor([0, 2, 3, 4, 5])
    partly = shrink_(mask_(copy.deepcopy(norm), _plan(norm)), _plan(norm, cut))
    shrunk = shrink_(copy.deepcopy(norm), _plan(norm))
    assert torch.allclose(partly(_values()[:, cut])[:, [0, 1, 2, 4]], shrunk(_values()[:, KEEP]), atol=1e-6)


def test_gradients_pass() -> None:
    masked = mask_(_norm("layer"), _plan(_norm("layer")))
    values = _values().requires_grad_()
    masked(values).sum().backward()
    assert values.grad is not None
    assert not values.grad[:, [1, 4]].any()
    assert not masked.weight.grad[[1, 4]].any()


def test_a_failing_forward_leaves_no_mode_behind() -> None:
    masked = mask_(_norm("layer"), _plan(_norm("layer")))
    with pytest.raises((IndexError, RuntimeError)):
        masked(torch.zeros(4, 4))
    assert torch.allclose(F.layer_norm(_values(), [6], masked.weight), nn.LayerNorm(6)(_values()) * masked.weight)


def test_it_copies_and_pickles() -> None:
    masked = mask_(_norm("layer"), _plan(_norm("layer")))
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        assert torch.equal(twin(_values()), masked(_values()))


def test_batch_norm_needs_none_of_it() -> None:
    net = mask_(nn.BatchNorm1d(6), PruningPlan({"weight": {0: KEEP}, "bias": {0: KEEP}}))
    assert not any(isinstance(getattr(hook, "__self__", None), KeptStatistics) for hook in net._forward_hooks.values())
