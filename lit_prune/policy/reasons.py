"""Why groups stay as they are, though the scope would have them lose channels."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from torch import nn

from lit_prune.common.names import layer_of
from lit_prune.common.ranks import any_rank, gather, warn_once
from lit_prune.criteria import Criterion
from lit_prune.errors import TraceError
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.plan import PruningPlan


def apart_from(groups: Sequence[ChannelGroup], reasons: Mapping[str, str]) -> tuple[ChannelGroup, ...]:
    """The groups for which there is no reason to stay; pieces of one split stay equally wide: all of them or none."""
    return tuple(group for group in groups if not reasons.keys() & {group.name, *group.balanced})


def held_back(
    error: Exception,
    graph: ChannelGraph,
    plan: PruningPlan,
    groups: tuple[ChannelGroup, ...],
    reasons: dict[str, str],
) -> tuple[ChannelGroup, ...]:
    """Groups that are left where some are why a plan can't be carried out; none where it is not for some alone.

    Args:
        error: What came of the plan, on this rank.
        graph: Of the network.
        plan: Can't be carried out.
        groups: Take part.
        reasons: Is told of those that stay, and why; so is the user.
    """
    if not any_rank(isinstance(error, TraceError)):
        return ()
    found = {name: why for each in gather(graph.culprits(plan)) for name, why in each.items()}
    left = apart_from(groups, found)
    if len(left) == len(groups):
        return ()
    reasons.update(found)
    if left:
        warn_once(f"{listed(found)}. {'It stays as it is' if len(found) == 1 else 'They stay as they are'}.")
    return left


def beside_unjudged(error: Exception, criterion: Criterion, unjudged: Sequence[str]) -> Exception:
    """The same error, with the groups that stay whole because the criterion says nothing of them."""
    if not unjudged:
        return error
    names = f"{', '.join(unjudged[:3])}{', ...' if len(unjudged) > 3 else ''}"
    needs = f", for it needs {criterion.needs}" if criterion.needs else ""
    return type(error)(
        f"{error} {len(unjudged)} more stay whole ({names}): {type(criterion).__name__} can't judge them{needs}."
    )


def listed(reasons: Mapping[str, str]) -> str:
    """Some layers with the reason why they stay, one of each reason."""
    shown = {reason: name for name, reason in reversed([*reasons.items()])}
    return "; ".join(f"{name} {reason}" for reason, name in [*shown.items()][:4])


def averaged(groups: Sequence[ChannelGroup], averages: Mapping[str, str]) -> dict[str, str]:
    """Groups that nobody trains but that follow what they are averages of."""
    return {
        group.name: f"is an average of {source.rstrip('.')}, and shrinks with it"
        for group in groups
        for prefix, source in averages.items()
        if all(name.startswith(prefix) for name, _ in group.slots)
    }


def untrained(network: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Groups of which a layer is not learning now: nothing would make up for what it loses."""
    trained = {name for name, parameter in network.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    vectors = {name for name, parameter in network.named_parameters(remove_duplicate=False) if parameter.dim() <= 1}
    reasons = {}
    for group in groups:
        still = [layer for layer, tensors in makers(group, vectors).items() if not tensors & trained]
        if still:
            reasons[group.name] = (
                "is not trained (requires_grad=False)"
                if group.name in still or len(still) == len(group.layers)
                else f"coupled with {still[0]}, which is not trained (requires_grad=False)"
            )
    return reasons


def makers(group: ChannelGroup, vectors: Container[str]) -> dict[str, set[str]]:
    """Each layer that makes a group's channels, with the names of its tensors and of those of the norms behind it.

    Slots come in the order of the forward: what lies between a layer and the next is the layer's, but for the weights
    of those that read the channels.
    """
    found: dict[str, set[str]] = {layer: set() for layer in group.layers}
    maker = group.layers[0]
    for name, _ in group.slots:
        layer = layer_of(name)
        maker = layer if layer in found else maker
        if layer == maker or name in vectors:
            found[maker].add(name)
    return found
