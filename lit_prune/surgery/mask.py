"""Set to zero what a plan removes: the reference for a shrunk network."""

from __future__ import annotations

import torch

from lit_prune.plan import PruningPlan
from lit_prune.surgery.kept_norms import keep_statistics_
from lit_prune.surgery.shrink import ModuleT, targets


def mask_(module: ModuleT, plan: PruningPlan) -> ModuleT:
    """Set to zero, in place, all that :func:`shrink_` would remove: the reference for it.

    Running variances stay, for a zero there would be divided by. Norms over channels (LayerNorm, GroupNorm, RMSNorm)
    take their statistics from the kept channels, as they do in a shrunk network: see
    :mod:`lit_prune.surgery.kept_norms`.

    Args:
        module: The network that the plan was made for.
        plan: As for :func:`shrink_`.

    Returns:
        The same module.

    Raises:
        ArgumentError: If the plan does not fit the module; then nothing has changed.
    """
    spared = {id(buffer) for name, buffer in module.named_buffers() if name.rpartition(".")[2] == "running_var"}
    for tensor, dims in targets(module, plan):
        if id(tensor) in spared:
            continue
        for dim, kept in dims.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[kept] = False
            tensor.data.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    keep_statistics_(module, plan)
    return module
