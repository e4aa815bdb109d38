"""Lightning's own callback."""

from __future__ import annotations

import copy
import math

from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from benchmarks.accuracy.peers.base import Peer


class LightningPruning(Peer):
    """ModelPruning: it sets filters to zero and removes none, so that the multiply-adds stay.

    Of each convolution go as many as would take that share of the multiply-adds if they were removed: of its filters
    and of its inputs 1 - sqrt(1 - amount). Convolutions by channel are left, as they would lose the same channels.
    """

    package = "lightning"
    name = "Lightning's ModelPruning"
    variants = ("ln_structured",)

    def sliced(self, variant: str, amount: float, draw: int) -> nn.Module:
        network = copy.deepcopy(self.row.network)
        kept = {id(module) for output in self.kept(network) for module in output.modules()}
        convs = [
            module
            for module in network.modules()
            if isinstance(module, nn.Conv2d) and module.groups == 1 and id(module) not in kept
        ]
        pruning = ModelPruning(
            variant,
            [(conv, "weight") for conv in convs],
            use_global_unstructured=False,
            pruning_dim=0,
            pruning_norm=2,
        )
        # What a Trainer calls at the end of an epoch, and of the training.
        pruning.apply_pruning(1 - math.sqrt(1 - amount))
        pruning.make_pruning_permanent(network)
        return network
