"""Other packages, each driven as its documentation says."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.rows.base import Row, still
from benchmarks.accuracy.ways import Cut, macs_of
from lit_prune.common._compat import NormBase

# Torch-Pruning's own steps: until enough is gone.
_STEPS = 100


class TorchPruning:
    """Torch-Pruning's importance, in many small steps; then its reset of BatchNorms' statistics.

    Args:
        row: What is cut.
        round_to: Kept widths are multiples of it.
    """

    package = "torch_pruning"
    importances = ("Magnitude", "Taylor")
    spreads = ("uniform", "global")

    def __init__(self, row: Row, round_to: int) -> None:
        self.row, self.round_to = row, round_to
        self._cuts: dict[tuple[float, int, str, str], nn.Module] = {}

    def ways(self) -> Iterator[tuple[str, Cut]]:
        for importance in self.importances:
            for spread in self.spreads:
                for recalibrated in (False, True):
                    way = f"Torch-Pruning, {importance}, {spread}; {'recalibrated' if recalibrated else 'sliced'}"
                    yield way, partial(self._cut, importance, spread, recalibrated)

    def _cut(
        self, importance: str, spread: str, recalibrated: bool, amount: float, draw: int
    ) -> tuple[nn.Module, float]:
        # Weights alone decide alike in each draw.
        key = amount, draw if importance == "Taylor" else 0, importance, spread
        if key not in self._cuts:
            self._cuts[key] = self._sliced(*key)
        network = copy.deepcopy(self._cuts[key])
        if recalibrated:
            recalibrate(self.row, network, draw)
        return network.eval(), 0.0

    def _sliced(self, amount: float, draw: int, importance: str, spread: str) -> nn.Module:
        import torch_pruning as tp

        row = self.row
        network = with_split_convolutions(copy.deepcopy(row.network)).train()
        still(network)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        kept = [
            module
            for name, module in network.named_modules()
            if type(module).__name__ in row.outputs or name in row.outputs
        ]
        pruner = tp.pruner.BasePruner(
            network,
            row.image,
            importance=getattr(tp.importance, f"Group{importance}Importance")(),
            global_pruning=spread == "global",
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=_STEPS,
            ignored_layers=kept,
            round_to=self.round_to,
        )
        batch, whole = row.batches(draw, 16)[0], macs_of(row, row.network)
        for _ in range(_STEPS):
            if importance == "Taylor":
                network.zero_grad()
                row.loss(network, batch).backward()
            pruner.step()
            if macs_of(row, network) <= (1 - amount) * whole:
                break
        network.zero_grad()
        return network.eval()


PEERS = [TorchPruning]


def installed(row: Row, round_to: int) -> tuple[list[TorchPruning], list[str]]:
    """The peers that can be run, and the packages that are missing."""
    missing = [peer.package for peer in PEERS if find_spec(peer.package) is None]
    return [peer(row, round_to) for peer in PEERS if peer.package not in missing], missing


@torch.no_grad()
def recalibrate(row: Row, network: nn.Module, draw: int) -> None:
    """Statistics of BatchNorms from sixteen batches."""
    for module in network.modules():
        if isinstance(module, NormBase):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    for batch in row.batches(draw, 16):
        network(row.inputs(batch))
    for module in network.modules():
        if isinstance(module, NormBase):
            module.momentum = 0.1


def with_split_convolutions(network: nn.Module) -> nn.Module:
    """C2f of Ultralytics with two convolutions in the place of one that is split: the other package can't cut that."""
    for name, module in list(network.named_modules()):
        if {"C2f", "C3k2"} & {base.__name__ for base in type(module).__mro__}:
            parent = network.get_submodule(name.rpartition(".")[0])
            parent._modules[name.rpartition(".")[2]] = _Split(module)
    return network


class _Split(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.m, self.cv2, self.f, self.i, self.type = block.m, block.cv2, block.f, block.i, block.type
        half = block.cv1.conv.out_channels // 2
        self.first, self.second = (copy.deepcopy(block.cv1) for _ in range(2))
        for conv, part in ((self.first, slice(None, half)), (self.second, slice(half, None))):
            conv.conv.out_channels = conv.bn.num_features = half
            conv.conv.weight = nn.Parameter(block.cv1.conv.weight.data[part].clone())
            for name in ("weight", "bias"):
                setattr(conv.bn, name, nn.Parameter(getattr(block.cv1.bn, name).data[part].clone()))
            for name in ("running_mean", "running_var"):
                setattr(conv.bn, name, getattr(block.cv1.bn, name)[part].clone())

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x), self.second(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))
