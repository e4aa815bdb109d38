"""A spread that ranks channels among those of layers that are built alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lit_prune.common.names import layer_of
from lit_prune.criteria import Evidence
from lit_prune.errors import SelectionError
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.select.base import Bundle, Scores, Target, Widths, bundled, flat, lowest
from lit_prune.select.spread import Global, ratio_of, within_ratio


class Isomorphic(Global):
    """The same ratio of each kind of layers; within a kind the channels with the lowest scores.

    Groups are of one kind where they are built alike: of the same classes of layers, in the same number, with kernels
    of the same size, whatever their widths. So scores of what differs (inside of blocks and along residuals, depthwise
    and not, attention heads and the layers behind) need not be comparable.

    Args:
        normalization: As for :class:`Global`, within a kind.

    Raises:
        ArgumentError: As for :class:`Global`.

    References:
        Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, section 3.3.

    Example:
        >>> from lit_prune.select import MacsBudget
        >>> type(MacsBudget("isomorphic").spread).__name__
        'Isomorphic'
    """

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove ``target.ratio`` of all dense channels of each kind, or as many as rounding lets go."""
        ratio, bundles = ratio_of(target, self), bundled(evidence.groups, scores)
        widths: Widths = {}
        for alike in _by_kind(bundles, target):
            try:
                widths |= within_ratio(self, alike, scores, target, ratio)
            except SelectionError:
                widths |= self.widths(1.0, alike, scores, target)
        return lowest(flat(bundles), scores, widths)

    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """The level is a quantile of the scores of each kind: what lies below it goes."""
        found: Widths = {}
        for alike in _by_kind(bundles, target):
            found |= super().widths(level, alike, scores, target)
        return found


def kinds_of(network: nn.Module, graph: ChannelGraph) -> dict[str, int]:
    """Group name to a number that groups have in common which are built alike.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 2, 1))
        >>> [*kinds_of(net, ChannelGraph.trace(net, torch.zeros(1, 3, 16, 16))).values()]
        [0, 0, 1]
    """
    modules = dict(network.named_modules(remove_duplicate=False))
    tensors = dict(network.named_parameters(remove_duplicate=False))
    numbers: dict[tuple[tuple[str, ...], ...], int] = {}

    def built(group: ChannelGroup) -> tuple[tuple[str, ...], ...]:
        parts = []
        for name, dim in group.slots:
            owner, tensor = modules.get(layer_of(name)), tensors.get(name)
            # What lies in buffers belongs to norms.
            kernel = () if tensor is None else tensor.shape[2:]
            parts.append((type(owner).__name__, name.rpartition(".")[2], str(dim), str([*kernel])))
        return tuple(sorted(parts))

    return {group.name: numbers.setdefault(built(group), len(numbers)) for group in graph.groups}


def _by_kind(bundles: Sequence[Bundle], target: Target) -> list[list[Bundle]]:
    alike: dict[tuple[int, ...], list[Bundle]] = {}
    for bundle in bundles:
        alike.setdefault(tuple(sorted(target.kinds.get(group.name, 0) for group in bundle)), []).append(bundle)
    return [*alike.values()]
