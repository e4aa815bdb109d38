"""A network of one's own, cut together with all that hangs on it, and repaired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.activations.calibration import batches_of
from lit_prune.common.arguments import check_kind
from lit_prune.common.initialized import check_network
from lit_prune.common.names import names_of_tensors, tensors_of
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.plan import PruningPlan
from lit_prune.repair.repair import Repair, Repaired, repaired
from lit_prune.surgery.prepare import prepare

Kind = TypeVar("Kind")


def prune_(
    module: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    data: Iterable[Tensor | tuple[Any, ...] | Mapping[str, Any]] | None = None,
) -> Repaired:
    """Shrink a network in place together with all that holds something of its shape.

    Parameters stay the same objects, so parameter groups, schedulers and hooks stay valid. Optimizer state and
    gradients keep the values of what is left. With ``data`` what is left is repaired by a :class:`lit_prune.Repair`.

    Args:
        module: The network that the plan was made for.
        plan: What to keep.
        optimizers: Optimizers over its parameters.
        copies: Averaged copies (EMA, SWA) whose tensors have the same names, or some of them.
        data: Some batches of inputs, on the network's device: a tensor, a tuple of arguments, or a dict of arguments
            by keyword, each. Some hundred examples like those of training are enough. Without, weights are sliced and
            stay what they are.

    Returns:
        What the repair has changed; nothing without data.

    Raises:
        UnsupportedError: If an optimizer holds state that can't be cut; then nothing has changed.
        ArgumentError: If the plan does not fit, an optimizer holds no parameter of the module, or a copy has no tensor
            of its names; then nothing has changed.
        ArgumentTypeError: If the module or the plan is none, or optimizers, copies or data are no lists of such; then
            nothing has changed.

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
    check_network("module", module)
    check_kind("plan", plan, PruningPlan)
    optimizers = _listed("optimizers", "optimizer", optimizers, Optimizer)
    # What is there twice, or the network itself, is cut once.
    copies = [copy for copy in dict.fromkeys(_listed("copies", "copy", copies, nn.Module)) if copy is not module]
    _check_related(module, optimizers, copies)
    commit = prepare(module, plan, optimizers, copies)
    found = Repaired()
    if data is not None:
        batches = batches_of(data)
        found = repaired(module, plan, lambda: batches, len(batches), Repair())
    commit()
    found.apply_(module, copies)
    return found


def _listed(name: str, one: str, given: Any, kind: type[Kind]) -> list[Kind]:
    if isinstance(given, kind) or not isinstance(given, Iterable):
        raise ArgumentTypeError(
            f"{name} is a list, but got a {type(given).__name__}: write prune_(network, plan, [optimizer], [ema])."
        )
    found = [*given]
    for each in found:
        check_kind(f"each {one}", each, kind)
    return found


def _check_related(module: nn.Module, optimizers: Iterable[Optimizer], copies: Iterable[nn.Module]) -> None:
    """Raise for what has nothing to do with a module."""
    parameters = {*module.parameters()}
    for optimizer in optimizers:
        if not any(parameter in parameters for group in optimizer.param_groups for parameter in group["params"]):
            raise ArgumentError(
                f"A {type(optimizer).__name__} holds no parameter of this {type(module).__name__}: give those that "
                "train it."
            )
    names = {name for named in names_of_tensors(module) for name in named}
    for copy in copies:
        if not any(name in names for name, _ in tensors_of(copy)):
            raise ArgumentError(
                f"A {type(copy).__name__} among the copies has no tensor of the names of this {type(module).__name__}: "
                "give a module in which they are called the same (of torch's AveragedModel, its `module`)."
            )
