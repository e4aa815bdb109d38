"""A network cut together with all that hangs on it: optimizers and copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from lit_prune.common.names import names_of_tensors, tensors_of
from lit_prune.common.ranks import warn_once
from lit_prune.errors import ArgumentTypeError
from lit_prune.modules.remembered import unclear_widths
from lit_prune.plan import PruningPlan
from lit_prune.surgery.optimizers import state_changes
from lit_prune.surgery.shrink import _assign_, shrink_, targets


def prune_(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
) -> None:
    """Shrink a network in place together with all that holds something of its shape.

    Parameters stay the same objects, so parameter groups, schedulers and hooks stay valid. Optimizer state and
    gradients keep the values of what is left.

    Args:
        module: The network that the plan was made for.
        plan: What to keep.
        optimizers: Optimizers over its parameters.
        copies: Averaged copies (EMA, SWA) whose tensors have the same names, or some of them.

    Raises:
        UnsupportedError: If an optimizer holds state that can't be cut; then nothing has changed.
        ValueError: If the plan does not fit; then nothing has changed.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> adam = torch.optim.AdamW(net.parameters())
        >>> net(torch.rand(1, 3, 4, 4)).sum().backward()
        >>> adam.step()
        >>> keep = torch.arange(6)
        >>> plan = PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}})
        >>> prune_(net, plan, [adam])
        >>> adam.state[net[1].weight]["exp_avg"].shape
        torch.Size([4, 6, 1, 1])
    """
    prepare(module, plan, optimizers, copies)()


def prepare(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
) -> Callable[[], None]:
    """The first half of :func:`prune_`, with all that can be refused in it; what it returns is the second.

    Between the two, ranks can agree that none has refused.
    """
    if isinstance(optimizers, Optimizer) or isinstance(copies, nn.Module):
        raise ArgumentTypeError("optimizers and copies are lists: write prune_(network, plan, [optimizer], [ema]).")
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
