"""A network cut together with all that hangs on it: optimizers and copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from lit_prune.common.names import names_of_tensors, tensors_of
from lit_prune.common.ranks import warn_once
from lit_prune.modules.remembered import unclear_widths
from lit_prune.plan import PruningPlan
from lit_prune.surgery.optimizers import state_changes
from lit_prune.surgery.shrink import _assign_, shrink_, targets


def prepare(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
) -> Callable[[], None]:
    """The first half of :func:`lit_prune.prune_`, with all that can be refused in it; what it returns is the second.

    Between the two, ranks can agree that none has refused.
    """
    # A copy may hold a layer that stands in several places under another name, or under each.
    named = plan.under(names_of_tensors(module))
    plans = [(module, plan), *((copy, named.only(dict(tensors_of(copy)))) for copy in copies)]
    for network, part in plans:
        targets(network, part)
    changes = state_changes(module, plan, optimizers)

    def commit() -> None:
        for network, part in plans:
            shrink_(network, part)
        for tensor, values in changes:
            _assign_(tensor, values)
        if unclear := unclear_widths(module):
            more = f" and {len(unclear) - 5} others" if len(unclear) > 5 else ""
            warn_once(
                f"Of what modules remember, {', '.join(unclear[:5])}{more} may be widths that are gone. No forward "
                "reads them, but what merges branches or builds on a module might: set them, or say by "
                "lit_prune.register_attributes how they follow."
            )

    return commit
