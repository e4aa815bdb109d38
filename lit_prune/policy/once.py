"""One pruning in one call, for a loop of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.activations import collect_arrivals
from lit_prune.activations.calibration import batches_of
from lit_prune.common._compat import tree_flatten
from lit_prune.common.choices import resolve
from lit_prune.common.initialized import check_network
from lit_prune.criteria import CRITERIA, Changes, Criterion
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph import Call, ChannelGraph
from lit_prune.plan import PruningPlan
from lit_prune.policy.history import Record
from lit_prune.policy.measure import Measure
from lit_prune.policy.policy import PruningPolicy
from lit_prune.policy.scope import Scope
from lit_prune.select import SELECTIONS, Selection


def plan_pruning(
    network: nn.Module,
    *inputs: Any,
    amount: float | None = None,
    selection: Selection | str = "macs",
    criterion: Criterion | str = "magnitude",
    blocks: Sequence[int | str] | None = None,
    exclude: Sequence[str] | None = (),
    round_to: int = 8,
    min_channels: int = 1,
    losses: Iterable[Tensor] | None = None,
    data: Iterable[Tensor | tuple[Any, ...] | Mapping[str, Any]] | None = None,
) -> PruningPlan:
    """The plan of one pruning, tried out on a copy, for :func:`lit_prune.prune_` in a loop of one's own.

    Nothing is changed. On several ranks of ``torch.distributed`` all have the plan of rank 0.

    Args:
        network: The network, on any device.
        *inputs: Example inputs of its forward; a batch of any size.
        amount: The ratio that goes, in (0, 1), of what the selection counts: by default multiply-adds. Left out for a
            selection that says by itself how far it goes, such as ``MacsBudget(at_most="45 MMACs")``.
        selection: As for :class:`lit_prune.ChannelPruning`; one that needs no activations.
        criterion: Likewise.
        blocks: As for :class:`lit_prune.ChannelPruning`.
        exclude: Likewise.
        round_to: Likewise.
        min_channels: Likewise.
        losses: The losses of some batches, for a criterion that goes by gradients: made one after the other, as by
            ``(loss_of(network, batch) for batch in batches)``. No gradient is left anywhere.
        data: Some batches of inputs, on the network's device, for a criterion that goes by what arrives at layers: a
            tensor, a tuple of arguments, or a dict of arguments by keyword, each. As many are taken as the criterion
            asks for.

    Raises:
        ArgumentTypeError: If the network is none, or no input is a tensor.
        ArgumentError: If an argument is out of range, the selection needs activations, or nothing can be pruned.
        SelectionError: If the amount is out of reach.
        TraceError: If the network can't be run on these inputs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
        >>> plan = plan_pruning(net, torch.zeros(1, 3, 16, 16), amount=0.5)
        >>> {name: {dim: len(kept) for dim, kept in dims.items()} for name, dims in plan.kept.items()}
        {'0.bias': {0: 16}, '0.weight': {0: 16}, '2.weight': {1: 16}}
    """
    check_network("network", network)
    if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(inputs)[0]):
        raise ArgumentTypeError(f"plan_pruning takes example inputs of the network, with a tensor, but got {inputs!r}.")
    policy = PruningPolicy(
        Scope(blocks, exclude or ()),
        resolve("criterion", criterion, Criterion, CRITERIA),
        resolve("selection", selection, Selection, SELECTIONS),
        round_to,
        min_channels,
    )
    ratio = policy.checked_amount(amount)
    if policy.looks_at_objects:
        raise ArgumentError(
            f"{type(policy.selection).__name__} by {type(policy.criterion).__name__} goes by activations of objects, "
            "and there are none here: take another criterion or selection, or train with ChannelPruning."
        )
    if policy.calibration is not None and data is None:
        raise ArgumentError(
            f"{type(policy.criterion).__name__} goes by what arrives at layers: give some batches of inputs, such as "
            "plan_pruning(..., data=[images]), or take a criterion that goes by weights."
        )
    calls = [Call("", inputs)]
    policy.scope.check(network)
    graph = ChannelGraph.trace_calls(network, calls)
    policy.check(network, graph)
    changes = _changes(network, graph, losses) if policy.criterion.needs_gradients and losses is not None else {}
    # As many as the criterion asks for: what makes them may never end.
    batches = [] if policy.calibration is None else batches_of(data, policy.calibration.batches)
    measure = Measure(arrivals=lambda weights, _, wanted: collect_arrivals(network, weights, batches, None, wanted))
    return policy.decide(network, calls, ratio, Record(), measure, changes=changes).plan


def _changes(network: nn.Module, graph: ChannelGraph, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    changes = Changes(network, graph)
    if isinstance(losses, Tensor) or not isinstance(losses, Iterable):
        raise ArgumentTypeError(f"losses is a list of losses, or what makes them one by one, but got {losses!r}.")
    for loss in losses:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            shown = f"one of shape {[*loss.shape]}" if isinstance(loss, Tensor) and loss.numel() != 1 else repr(loss)
            raise ArgumentTypeError(f"Each of the losses is a tensor with one number and a gradient, but got {shown}.")
        if not loss.isfinite():
            raise ArgumentError(
                f"Each of the losses must be finite, but one is {loss.item()}: its gradients tell nothing."
            )
        changes.note(dict(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)))
    return changes.values()
