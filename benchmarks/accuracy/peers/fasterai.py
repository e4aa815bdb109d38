"""fasterai."""

from __future__ import annotations

import copy
from contextlib import redirect_stdout
from io import StringIO

from torch import nn

from benchmarks.accuracy.peers.base import STEPS, Peer
from benchmarks.accuracy.peers.torch_pruning import with_split_convolutions
from benchmarks.accuracy.ways import macs_of


class Fasterai(Peer):
    """Its Pruner, by the magnitude of weights, in many small steps; Torch-Pruning does what it decides.

    Its criterion by gradients, `grad_crit`, can't be given to its Pruner.
    """

    package = "fasterai"
    name = "fasterai"
    variants = ("large_final, local", "large_final, global")

    def sliced(self, variant: str, amount: float, draw: int) -> nn.Module:
        from fasterai.core import criteria
        from fasterai.prune.pruner import Pruner

        criterion, context = variant.split(", ")
        row = self.row
        network = with_split_convolutions(copy.deepcopy(row.network))
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        whole = macs_of(row, row.network)
        with redirect_stdout(StringIO()):
            pruner = Pruner(
                network,
                1.0,
                context,
                getattr(criteria, criterion),
                ignored_layers=self.kept(network),
                example_inputs=row.image,
                iterative_steps=STEPS,
                max_pruning_ratio=0.9,
                round_to=self.round_to,
            )
            for _ in range(STEPS):
                pruner.prune_model()
                if macs_of(row, network) <= (1 - amount) * whole:
                    break
        return network
