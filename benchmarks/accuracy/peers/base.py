"""What another package's way of cutting is."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.accuracy.rows.base import Row
from benchmarks.accuracy.ways import Cut
from lit_prune.common._compat import NormBase

STEPS = 100
"""Small ones, in which a package goes on until enough is gone."""


class Peer(ABC):
    """A package's cuts, each made once; then as they are, and with the statistics of BatchNorms taken anew.

    Args:
        row: What is cut.
        round_to: Kept widths are multiples of it.

    Attributes:
        package: What has to be there to import.
        name: In tables.
        variants: Of the cuts.
        by_data: Those that decide otherwise in each draw.
    """

    package: str
    name: str
    variants: tuple[str, ...]
    by_data: tuple[str, ...] = ()

    def __init__(self, row: Row, round_to: int) -> None:
        self.row, self.round_to = row, round_to
        self._cuts: dict[tuple[str, float, int], nn.Module] = {}

    def ways(self) -> Iterator[tuple[str, Cut]]:
        for variant in self.variants:
            for recalibrated in (False, True):
                way = f"{self.name}, {variant}; {'recalibrated' if recalibrated else 'sliced'}"
                yield way, partial(self._cut, variant, recalibrated)

    @abstractmethod
    def sliced(self, variant: str, amount: float, draw: int) -> nn.Module:
        """The network without that share of its multiply-adds."""

    def kept(self, network: nn.Module) -> list[nn.Module]:
        """Of a copy of the network, what must keep its channels."""
        outputs = self.row.outputs
        return [
            module for name, module in network.named_modules() if type(module).__name__ in outputs or name in outputs
        ]

    def _cut(self, variant: str, recalibrated: bool, amount: float, draw: int) -> tuple[nn.Module, float]:
        key = variant, amount, draw if variant in self.by_data else 0
        if key not in self._cuts:
            self._cuts[key] = self.sliced(*key).eval()
        network = copy.deepcopy(self._cuts[key])
        if recalibrated:
            recalibrate(self.row, network, draw)
        return network.eval(), 0.0


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
