"""Torch-Pruning."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.peers.base import STEPS, Peer
from benchmarks.accuracy.rows.base import still
from benchmarks.accuracy.ways import macs_of


class TorchPruning(Peer):
    """Its importance, in many small steps; then its reset of BatchNorms' statistics."""

    package = "torch_pruning"
    name = "Torch-Pruning"
    variants = ("Magnitude, uniform", "Magnitude, global", "Taylor, uniform", "Taylor, global")
    by_data = variants[2:]

    def sliced(self, variant: str, amount: float, draw: int) -> nn.Module:
        import torch_pruning as tp

        importance, spread = variant.split(", ")
        row = self.row
        network = with_split_convolutions(copy.deepcopy(row.network)).train()
        still(network)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        pruner = tp.pruner.BasePruner(
            network,
            row.image,
            importance=getattr(tp.importance, f"Group{importance}Importance")(),
            global_pruning=spread == "global",
            pruning_ratio=1.0,
            max_pruning_ratio=0.9,
            iterative_steps=STEPS,
            ignored_layers=self.kept(network),
            round_to=self.round_to,
        )
        batch, whole = row.batches(draw, 16)[0], macs_of(row, row.network)
        for _ in range(STEPS):
            if importance == "Taylor":
                network.zero_grad()
                row.loss(network, batch).backward()
            pruner.step()
            if macs_of(row, network) <= (1 - amount) * whole:
                break
        network.zero_grad()
        return network


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
