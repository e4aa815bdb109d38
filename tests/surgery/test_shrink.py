"""shrink_, mask_ and adopt_shapes_: in place, all or nothing, and nothing forgotten."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, PruningPlan, mask_, shrink_
from lit_prune.surgery.adoption import accept_pruned, adopt_shapes_
from lit_prune.surgery.shrink import select
from testing.invariant import randomise_

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def _plan(channels: list[int] | None = None) -> PruningPlan:
    return ChannelGraph.trace(_net(), IMAGES).plan({"0": [1, 5] if channels is None else channels})


def test_parameters_keep_their_identity() -> None:
    net = _net()
    before = dict((*net.named_parameters(), *net.named_buffers()))
    assert shrink_(net, _plan()) is net
    assert all(before[name] is tensor for name, tensor in (*net.named_parameters(), *net.named_buffers()))
    assert all(isinstance(parameter, nn.Parameter) for parameter in net.parameters())
    assert net[0].weight.shape == (6, 3, 3, 3)


def test_values_are_those_kept() -> None:
    net = randomise_(_net())
    before, keep = copy.deepcopy(net), torch.tensor([0, 2, 3, 4, 6, 7])
    shrink_(net, _plan())
    assert torch.equal(net[0].weight, before[0].weight[keep])
    assert torch.equal(net[1].running_var, before[1].running_var[keep])
    assert torch.equal(net[3].weight, before[3].weight[:, keep])
    assert torch.equal(net[3].bias, before[3].bias)


def test_gradients_are_cut_along() -> None:
    net = _net()
    net(IMAGES).sum().backward()
    gradient = net[0].weight.grad.clone()
    shrink_(net, _plan())
    assert torch.equal(net[0].weight.grad, gradient[torch.tensor([0, 2, 3, 4, 6, 7])])
    assert net[3].bias.grad.shape == (4,)
    net(IMAGES).sum().backward()


def test_a_loss_of_before_does_not_break_the_next_backward() -> None:
    net = _net()
    held = net(IMAGES).sum()
    held.backward(retain_graph=True)
    shrink_(net, _plan())
    net(IMAGES).sum().backward()
    assert net[0].weight.grad.shape == net[0].weight.shape
    assert held.requires_grad


def test_hooks_and_flags_stay() -> None:
    net = _net()
    net[0].weight.requires_grad_(False)
    seen: list[torch.Size] = []
    net[3].weight.register_hook(lambda gradient: seen.append(gradient.shape))
    shrink_(net, _plan())
    net(IMAGES).sum().backward()
    assert seen == [torch.Size([4, 6, 1, 1])]
    assert not net[0].weight.requires_grad


def test_remembered_integers_follow() -> None:
    net = shrink_(_net(), _plan())
    assert (net[0].out_channels, net[1].num_features, net[3].in_channels) == (6, 6, 6)


def test_masked_and_shrunk_compute_the_same() -> None:
    net = randomise_(_net()).eval()
    masked, shrunk = mask_(copy.deepcopy(net), _plan()), shrink_(copy.deepcopy(net), _plan())
    assert torch.allclose(masked(IMAGES), shrunk(IMAGES), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked(IMAGES), net(IMAGES), rtol=1e-2)
    # The mask reaches every slot but the variance, which is divided by.
    assert not masked[0].weight[[1, 5]].any()
    assert not masked[3].weight[:, [1, 5]].any()
    assert not masked[1].running_mean[[1, 5]].any()
    assert torch.equal(masked[1].running_var, net[1].running_var)


@pytest.mark.parametrize("cut", [shrink_, mask_])
@pytest.mark.parametrize(
    ("kept", "sizes", "message"),
    [
        ({"9.weight": {0: [0]}}, {}, r"names '9\.weight', which is no parameter or buffer of this Sequential"),
        ({"3.bias": {1: [0]}}, {}, r"cuts dim 1 of 3\.bias, which has shape \(4,\)"),
        ({"3.bias": {0: [7]}}, {}, r"for 3\.bias with at least 8 indices in dim 0; here it has 4"),
        ({"3.bias": {0: [1]}}, {"3.bias": {0: 6}}, r"with 6 indices in dim 0; here it has 4"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(
    cut: Callable[[nn.Module, PruningPlan], nn.Module],
    kept: dict[str, dict[int, list[int]]],
    sizes: dict[str, dict[int, int]],
    message: str,
) -> None:
    net = _net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        cut(net, PruningPlan({"0.bias": {0: [0]}, **kept}, sizes))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net[0].out_channels == 8


def test_a_plan_is_not_applied_twice() -> None:
    net, plan = _net(), _plan()
    shrink_(net, plan)
    with pytest.raises(ValueError, match="has been applied already"):
        shrink_(net, plan)


def test_tied_weights_are_cut_once() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    net[2].weight = net[1].weight
    graph = ChannelGraph.trace(net, torch.zeros(1, 4))
    (group,) = graph.groups
    shrink_(net, graph.plan({group.name: [0, 3]}))
    assert net[2].weight is net[1].weight
    assert net[1].weight.shape == (4, 4)
    assert net(torch.zeros(1, 4)).shape == (1, 2)


def test_the_memory_format_stays() -> None:
    net = _net().to(memory_format=torch.channels_last)
    shrink_(net, _plan())
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not net[0].weight.is_contiguous()
    assert select(torch.zeros(4, 4), {0: torch.tensor([1])}).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    net = shrink_(_net().to(dtype), _plan())
    assert net[0].weight.dtype == dtype
    assert net[0].weight.shape[0] == 6


def test_shapes_are_adopted_both_ways() -> None:
    dense, plan = randomise_(_net()), _plan()
    pruned = shrink_(copy.deepcopy(dense), plan)
    fresh = _net()
    adopt_shapes_(fresh, pruned.state_dict())
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), pruned.eval()(IMAGES))
    assert fresh[1].num_features == 6
    adopt_shapes_(fresh, dense.state_dict())
    fresh.load_state_dict(dense.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), dense.eval()(IMAGES))
    assert fresh[0].out_channels == 8


def test_adopting_keeps_identity_and_device() -> None:
    net = _net()
    identities = [id(tensor) for tensor in net.parameters()]
    adopt_shapes_(net, shrink_(_net(), _plan()).state_dict())
    assert identities == [id(tensor) for tensor in net.parameters()]
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_another_architecture_is_refused_and_nothing_changes() -> None:
    net = _net()
    state = {**shrink_(_net(), _plan()).state_dict(), "3.weight": torch.zeros(4, 6)}
    with pytest.raises(ValueError, match="pruning never changes the number of dimensions"):
        adopt_shapes_(net, state)
    assert net[0].weight.shape[0] == net[0].out_channels == 8


@pytest.mark.parametrize("left", [5, 1])
def test_depthwise_convolutions_grow_back(left: int) -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 4, 1))

    graph = ChannelGraph.trace(net(), IMAGES)
    pruned = shrink_(net(), graph.plan({"0": range(left, 6)}))
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (left, left, 2 * left)
    adopt_shapes_(pruned, net().state_dict())
    assert (pruned[1].groups, pruned[1].in_channels, pruned[1].out_channels) == (6, 6, 12)


def test_an_accepting_module_pickles_and_copies() -> None:
    net, pruned = accept_pruned(_net()), shrink_(_net(), _plan())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.load_state_dict(pruned.state_dict())
        assert twin[0].out_channels == 6
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    net.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(net.eval()(IMAGES), pruned.eval()(IMAGES))


def test_a_cut_of_a_wrapped_module() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _net()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    wrapped = shrink_(Wrapper(), _plan().with_prefix("model."))
    assert wrapped(IMAGES).shape == (2, 4, 6, 6)
