"""Networks that the tests prune, and the invariant that all of them must hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_flatten

from lit_prune import ChannelGraph, PruningPlan, mask_, shrink_


def randomise_(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every vector (norms, biases, layer scales), running statistic and constant weight random values."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for name, parameter in network.named_parameters():
        if "dfl" in name or not parameter.is_floating_point():
            continue
        if parameter.numel() == parameter.shape.numel() and parameter.dim() <= 1:
            uniform(parameter, 0.5, 1.5) if name.rpartition(".")[2] != "bias" else uniform(parameter, -0.5, 0.5)
        elif float(parameter.data.std() if parameter.numel() > 1 else 0) < 1e-5:
            uniform(parameter, -0.2, 0.2)
    for module in network.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 1.5)
    return network


def random_removal(graph: ChannelGraph, share: float = 0.3, seed: int = 0) -> dict[str, list[int]]:
    """Random channels of every group, at least one of each; balanced groups lose equally many."""
    rng = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    for group in graph.groups:
        count = min(max(1, math.floor(group.size * share)), group.size - 1)
        for name in group.balanced or (group.name,):
            counts[name] = min(count, counts.get(name, count))
    return {group.name: rng.permutation(group.size)[: counts[group.name]].tolist() for group in graph.groups}


def tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors of an output, whatever it is made of."""
    return [leaf for leaf in tree_flatten(plain(output))[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def plain(value: Any) -> Any:
    """Mappings and named tuples as plain dicts and tuples."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def difference(first: Any, second: Any) -> float:
    """Largest difference of two outputs, relative to the largest value of each tensor; infinite where shapes differ."""
    ours, theirs = tensors(first), tensors(second)
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return math.inf
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.numel():
            scale = max(float(b.abs().max()), 1e-30)
            error = float((a - b).abs().max()) / scale
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


@dataclass(frozen=True)
class Check:
    """What :func:`check_invariant` found: errors of the first and the second pruning, and of the composed plan."""

    graph: ChannelGraph
    plan: PruningPlan
    first: float
    second: float
    composed: float

    @property
    def worst(self) -> float:
        return max(self.first, self.second, self.composed)


Forward = Callable[[nn.Module], Any]


def check_invariant(
    network: nn.Module,
    *args: Any,
    forward: Forward | None = None,
    seed: int = 0,
    graph: ChannelGraph | None = None,
    fixed_work: bool = True,
) -> Check:
    """Prune ``network`` twice at random and compare it with its masked twin each time.

    Args:
        network: Its weights are changed.
        *args: Its inputs.
        forward: What is compared; by default the output.
        seed: Of weights and removals.
        graph: The graph of the network, if it is there already.
        fixed_work: Whether its cost does not depend on its values, so that it can be foretold.
    """
    randomise_(network.eval(), seed)

    def run(module: nn.Module) -> Any:
        with torch.no_grad():
            return module.eval()(*args) if forward is None else forward(module.eval())

    graph = graph or ChannelGraph.trace(network, *args)
    removal = random_removal(graph, seed=seed)
    plan = graph.plan(removal)
    shrunk = shrink_(copy.deepcopy(network), plan)
    first = difference(run(shrunk), run(mask_(copy.deepcopy(network), plan)))

    again = ChannelGraph.trace(shrunk, *args)
    if fixed_work and graph.macs_without(removal) != again.macs:
        raise AssertionError(f"macs_without foretold {graph.macs_without(removal)}, the trace counts {again.macs}")
    plan2 = again.plan(random_removal(again, seed=seed + 1))
    masked = run(mask_(copy.deepcopy(shrunk), plan2))
    twice = shrink_(shrunk, plan2)
    second = difference(run(twice), masked)

    both = shrink_(copy.deepcopy(network), plan.then(plan2))
    mine, theirs = twice.state_dict(), both.state_dict()
    same = all(torch.equal(mine[name], theirs[name]) for name in mine)
    composed = difference(run(both), run(twice)) if same else math.inf
    return Check(graph, plan, first, second, composed)


def prunable_share(network: nn.Module, graph: ChannelGraph, besides: Collection[str] = ()) -> float:
    """Share of the output channels of convolutions and linear layers, but for those ``besides``, that can go."""
    free: dict[tuple[str, int], int] = {}
    for group in graph.groups:
        for slot in group.slots:
            free[slot] = free.get(slot, 0) + len(group.members[slot].indices)
    total = prunable = 0
    for name, module in network.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and name not in besides:
            dim = 1 if isinstance(module, _ConvTransposeNd) else 0
            total += module.weight.shape[dim]
            prunable += free.get((f"{name}.weight", dim), 0)
    return prunable / max(total, 1)


def yolo(name: str) -> nn.Module:
    """An Ultralytics detection network with random weights."""
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    return tasks.DetectionModel(name, verbose=False)


def raw_predictions(images: Tensor) -> Forward:
    """The forward of a detector up to its raw predictions: after them only a top-k follows, which jumps."""

    def strip(value: Any) -> Any:
        # The head hands its input maps on; of these only the size counts, and their channels shrink.
        return {key: strip(item) for key, item in value.items() if key != "feats"} if isinstance(value, dict) else value

    def forward(network: nn.Module) -> Any:
        output = network(images)
        return strip(output[1] if isinstance(output, tuple) else output)

    return forward
