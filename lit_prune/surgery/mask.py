"""Set to zero what a plan removes."""

from __future__ import annotations

import torch
from torch import nn

from lit_prune.common.names import find_tensor
from lit_prune.plan import PruningPlan
from lit_prune.surgery.kept_norms import keep_statistics_
from lit_prune.surgery.shrink import targets


def zero_(module: nn.Module, plan: PruningPlan) -> None:
    """Set to zero what a plan removes, but for what is divided by, and have norms look at what is kept.

    Raises:
        ArgumentError: If the plan does not fit the module; then nothing has changed.
    """
    spared = {id(buffer) for name, buffer in module.named_buffers() if name.rpartition(".")[2] == "running_var"}
    divisors = {(id(find_tensor(module, name)), dim) for name, dim in plan.divisors}
    for tensor, dims in targets(module, plan):
        if id(tensor) in spared:
            continue
        for dim, kept in dims.items():
            if (id(tensor), dim) in divisors:
                continue
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[kept] = False
            tensor.data.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    keep_statistics_(module, plan)
