"""Weights that a forward computes: normalised, masked, parametrised."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from lit_prune import ChannelGraph, shrink_
from lit_prune.policy.reasons import makers
from lit_prune.report.inspection import coverage
from tests.graph.tiny import exact, sizes

SIGNAL = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(3))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _doubled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm over all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight_norm of inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm of inputs": lambda layer: parametrizations.spectral_norm(layer, dim=1),
    "both": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
    "old weight_norm": old_weight_norm,
    "old weight_norm of inputs": lambda layer: old_weight_norm(layer, dim=1),
    "old spectral_norm": old_spectral_norm,
    "pruned by torch": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "doubled": _doubled,
}


def _layer(kind: str) -> nn.Module:
    return {
        "plain": nn.Conv1d(8, 6, 3, padding=1),
        "transposed": nn.ConvTranspose1d(8, 6, 4, 2, 1),
        "depthwise": nn.Conv1d(8, 8, 3, padding=1, groups=8),
        "grouped": nn.Conv1d(8, 6, 3, padding=1, groups=2),
    }[kind]


def _settled(net: nn.Module) -> nn.Module:
    """After a forward without gradients old hooks leave weights that can be copied."""
    with torch.no_grad():
        net(SIGNAL)
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("kind", ["plain", "transposed", "depthwise", "grouped"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_computed_weight_is_free_in_both_dimensions(name: str, kind: str) -> None:
    wrap, inner = WRAPPERS[name], _layer(kind)
    width = 8 if kind == "depthwise" else 6
    first, last = nn.Conv1d(4, 8, 3), nn.Conv1d(width, 3, 1)
    net = _settled(nn.Sequential(wrap(first), nn.ReLU(), wrap(inner), nn.ReLU(), last))
    graph = exact(net, SIGNAL)
    assert sum(size for layer, size in sizes(graph).items() if layer.startswith("0")) == (4 if kind == "grouped" else 8)
    assert not {"0", "2"} & set(graph.unprunable)
    assert {layer for group in graph.groups for layer in group.layers} <= {"0", "2"}


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_along_a_skip(wrap: Callable[[nn.Module], nn.Module]) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = wrap(nn.Conv1d(4, 8, 1)), wrap(nn.Conv1d(8, 3, 1))
            self.inner = wrap(nn.Conv1d(8, 8, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.leave(x + self.inner(x.relu()))

    assert sizes(exact(Residual(), SIGNAL)) == {"enter": 8}


def test_linear_layers() -> None:
    wrap = parametrizations.weight_norm
    net = nn.Sequential(wrap(nn.Linear(4, 8)), nn.GELU(), wrap(nn.Linear(8, 6), dim=1), nn.GELU(), nn.Linear(6, 2))
    assert sizes(exact(net, torch.randn(5, 4))) == {"0": 8, "2": 6}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, old_spectral_norm, old_weight_norm])
def test_remembered_widths_follow_without_a_step_of_the_power_method(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(wrap(nn.Conv1d(4, 8, 3)), nn.Conv1d(8, 3, 1)).train()
    plan = ChannelGraph.trace(net, SIGNAL).plan({"0": [1, 4]})
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    shrink_(net, plan)
    assert net[0].out_channels == 6
    assert net.training
    assert net[0].training
    for name, buffer in net.named_buffers():
        kept = plan.kept.get(name, {}).get(0, torch.arange(len(before[name])))
        assert torch.equal(buffer, before[name][kept])


def test_layers_are_named_by_themselves() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 8, 3)), nn.Conv1d(8, 3, 1))
    graph = ChannelGraph.trace(net, SIGNAL)
    assert graph.groups[0].layers == ("0",)
    assert makers(graph.groups[0], ())["0"] >= {"0.parametrizations.weight.original1", "0.bias"}
    assert coverage(graph, net).prunable == 8


def test_a_number_of_features_alone_is_one_of_the_network() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x)
            return self.leave(y) * torch.dot(y[0], y[1])

    graph = exact(Gated(), torch.randn(3, 4))
    assert "enters dot" in graph.unprunable["enter"]


def test_copies_share_nothing() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(4, 8, 3)), nn.Conv1d(8, 3, 1))
    before = copy.deepcopy(net.state_dict())
    ChannelGraph.trace(net, SIGNAL)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
