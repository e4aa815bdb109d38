"""A network of one's own, cut together with all that hangs on it, and repaired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.activations.calibration import batches_of
from lit_prune.plan import PruningPlan
from lit_prune.repair.repair import Repair, Repaired, repaired
from lit_prune.surgery.prepare import prepare


def prune_(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    data: Iterable[Tensor | tuple[Any, ...]] | None = None,
) -> Repaired:
    """Shrink a network in place together with all that holds something of its shape.

    Parameters stay the same objects, so parameter groups, schedulers and hooks stay valid. Optimizer state and
    gradients keep the values of what is left. With ``data`` what is left is repaired by a :class:`lit_prune.Repair`.

    Args:
        module: The network that the plan was made for.
        plan: What to keep.
        optimizers: Optimizers over its parameters.
        copies: Averaged copies (EMA, SWA) whose tensors have the same names, or some of them.
        data: Some batches of inputs, on the network's device: a tensor, or a tuple of arguments, each. Some hundred
            examples like those of training are enough. Without, weights are sliced and stay what they are.

    Returns:
        What the repair has changed; nothing without data.

    Raises:
        UnsupportedError: If an optimizer holds state that can't be cut; then nothing has changed.
        ArgumentError: If the plan does not fit; then nothing has changed.
        ArgumentTypeError: If the module or the plan is none, or optimizers, copies or data are no lists; then nothing
            has changed.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> adam = torch.optim.AdamW(net.parameters())
        >>> net(torch.rand(1, 3, 4, 4)).sum().backward()
        >>> adam.step()
        >>> keep = torch.arange(6)
        >>> plan = PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}})
        >>> found = prune_(net, plan, [adam], data=[torch.rand(32, 3, 4, 4)])
        >>> adam.state[net[1].weight]["exp_avg"].shape
        torch.Size([4, 6, 1, 1])
        >>> found.fits["1.weight"].after > 0.99
        True
    """
    commit = prepare(module, plan, optimizers, copies)
    found = Repaired()
    if data is not None:
        batches = batches_of(data)
        found = repaired(module, plan, lambda: batches, len(batches), Repair())
    commit()
    found.apply_(module, copies)
    return found
