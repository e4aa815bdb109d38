"""Criteria that read the weights alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_prune.common._compat import NormBase
from lit_prune.common.names import layer_of
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.errors import ArgumentError
from lit_prune.graph import ChannelGroup
from lit_prune.plan import Slot


class Magnitude(Criterion):
    """The norm of all weights that go with a channel: what makes it, what normalises it, and what reads it.

    A channel of a group lies in many tensors (coupled layers, their norms, the layers that follow); its score is one
    norm over all of them.

    Args:
        p: Order of the norm, positive; 2 is the Euclidean one.

    Raises:
        ArgumentError: If ``p`` is not positive.

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 (norms of filters); Fang et al.,
        "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3 (over a group).
    """

    def __init__(self, p: float = 2.0) -> None:
        if not p > 0:
            raise ArgumentError(f"p must be positive, but got {p}.")
        self.p = p

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score each channel by the norm over all its slots."""
        return {group.name: self._of(evidence, group) for group in evidence.groups}

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor:
        total = torch.zeros(group.size, dtype=torch.float64)
        for slot, tensor in evidence.slots_of(group):
            total += power_sums(group, slot, tensor, self.p)
        return total.pow(1 / self.p).float()


class LayerAdaptiveMagnitude(Magnitude):
    """LAMP: the square of a channel's magnitude beside those of all channels of its layer that are no smaller.

    Within a layer it ranks as the magnitude does; layers can be compared by it. With ``"global"`` scores count as they
    are.

    Args:
        p: As for :class:`Magnitude`.

    Raises:
        ArgumentError: As for :class:`Magnitude`.

    References:
        Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, equation 3; here of channels.

    Example:
        >>> from lit_prune import ChannelPruning
        >>> from lit_prune.select import MacsBudget
        >>> pruning = ChannelPruning(0.5, epochs=[6], criterion="lamp", selection=MacsBudget("global"))
    """

    comparable = True
    is_layer_adaptive = True

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor:
        squares, order = super()._of(evidence, group).double().square().sort(stable=True)
        left = squares.flip(0).cumsum(0).flip(0)
        # Those that are all nothing are worth nothing; what is no number stays none.
        shares = torch.where(left == 0, 0.0, squares / left)
        return torch.empty_like(shares).scatter_(0, order, shares).float()


class BatchNormScale(Criterion):
    """The scale |γ| of the BatchNorm that follows; a mean where a channel passes through several.

    Groups without a scaled BatchNorm can't be judged and stay.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    """

    needs = "a BatchNorm with a scale behind the layer"

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score each channel by its mean |γ|."""
        scores = {group.name: batch_norm_scales(group, evidence) for group in evidence.groups}
        return {name: score.float() for name, score in scores.items() if score is not None}


class GeometricMedian(Criterion):
    """How far the filters of a channel are from all others of their layer: one that others can stand in for goes first.

    A channel that several layers make has the root of the sum of their squares.

    References:
        He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019,
        section 3.2, equation 4.
    """

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score each channel by the sum of its distances to all channels."""
        return {group.name: self._of(evidence, group) for group in evidence.groups}

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor:
        squares = torch.zeros(group.size, dtype=torch.float64)
        for slot, tensor in evidence.slots_of(group):
            if tensor.dim() > 1 and layer_of(slot[0]) in group.layers:
                # Channels in several places of one layer are compared place by place; if equally many, they can be.
                rows = tensor.movedim(slot[1], 0).flatten(1).to("cpu", torch.float64)
                members = group.members[slot]
                if len(np.unique(np.bincount(members.channels, minlength=group.size))) > 1:
                    continue
                order = torch.from_numpy(members.channels).argsort(stable=True)
                filters = rows[torch.from_numpy(members.indices)[order]].reshape(group.size, -1)
                squares += torch.cdist(filters, filters).sum(1).square()
        return squares.sqrt().float()


class Random(Criterion):
    """Chance: what every other criterion has to beat.

    Args:
        seed: The same seed gives the same channels.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Draw a score for each channel; the global random state is not touched."""
        generator = torch.Generator().manual_seed(self.seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in evidence.groups}


def power_sums(group: ChannelGroup, slot: Slot, tensor: Tensor, p: float) -> Tensor:
    """``(size,)`` sum of |w|^p over all weights of one slot that go with each channel."""
    # On the CPU and in double precision every device decides alike.
    powers = tensor.detach().to("cpu", torch.float64).abs().pow(p)
    others = [other for other in range(tensor.dim()) if other != slot[1]]
    return per_channel(group, slot, powers.sum(others) if others else powers)


def per_channel(group: ChannelGroup, slot: Slot, values: Tensor) -> Tensor:
    """Sum ``values`` (one an index of the slot's dimension) over the indices of each channel.

    Returns:
        ``(group.size,)`` on the CPU, in double precision, so that every device decides alike.
    """
    members = group.members[slot]
    total = torch.zeros(group.size, dtype=torch.float64)
    picked = values.double().cpu()[torch.from_numpy(members.indices)]
    return total.index_add_(0, torch.from_numpy(members.channels), picked)


def batch_norm_scales(group: ChannelGroup, evidence: Evidence) -> Tensor | None:
    """``(size,)`` mean |γ| of the BatchNorms that each channel passes through; ``None`` where there is none."""
    scales = []
    for slot, tensor in evidence.slots_of(group):
        layer, _, leaf = slot[0].rpartition(".")
        if leaf == "weight" and isinstance(evidence.modules.get(layer), NormBase):
            places = per_channel(group, slot, torch.ones(len(tensor)))
            scales.append(per_channel(group, slot, tensor.abs()) / places.clamp(min=1))
    return torch.stack(scales).mean(0) if scales else None
