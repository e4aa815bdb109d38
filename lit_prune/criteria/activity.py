"""Criteria that read what arrives, on calibration batches, at the layers behind a channel."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lit_prune.activations import Arrivals, Calibration
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.magnitude import per_channel
from lit_prune.errors import ArgumentError
from lit_prune.graph import ChannelGroup
from lit_prune.plan import Slot

# Of the mean variance: what a direction needs that no example has shown.
_RIDGE = 1e-3
_TINY = torch.finfo(torch.float64).tiny ** 0.5


class Arriving(Criterion):
    """A criterion that goes by what arrives at each layer that reads a channel.

    Args:
        batches: How many calibration batches are looked at.
        batch_size: Of how many examples each.

    Raises:
        ArgumentError: If one is below 1; at an event, if there are no calibration batches.
    """

    needs_arrivals = True
    needs = "a convolution or linear layer behind it that runs on the calibration batches"

    def __init__(self, batches: int = 8, batch_size: int = 32) -> None:
        self.calibration = Calibration(batches, batch_size)

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score the channels of all groups that something reads.

        Raises:
            ArgumentError: If there are no calibration batches.
        """
        if not evidence.arrivals:
            raise ArgumentError(
                f"{type(self).__name__} goes by what arrives at layers, and nothing is known of that here. Under a "
                "Trainer calibration batches show it; elsewhere write plan_pruning(..., data=[images])."
            )
        scores = {group.name: self._of(evidence, group) for group in evidence.groups}
        return {name: score for name, score in scores.items() if score is not None}

    @abstractmethod
    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor | None:
        """Scores of one group; ``None`` where it can't be judged."""

    def _reading(self, evidence: Evidence, group: ChannelGroup) -> list[tuple[Slot, Tensor, Arrivals]]:
        """The slots of what reads a group, with its weight and what arrives there."""
        return [
            (slot, weight, evidence.arrivals[slot[0]])
            for slot, weight in evidence.readers_of(group)
            if slot[0] in evidence.arrivals and evidence.arrivals[slot[0]].dim == slot[1]
        ]

    def _mean(self, evidence: Evidence, group: ChannelGroup, of: str) -> Tensor | None:
        """``(size,)`` mean of a statistic over all places where a channel is read."""
        total, places = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size, dtype=torch.float64)
        for slot, _, arrivals in self._reading(evidence, group):
            values = getattr(arrivals, of)
            total += per_channel(group, slot, values)
            places += per_channel(group, slot, torch.ones_like(values))
        return None if not places.all() else (total / places).float()


class MeanActivation(Arriving):
    """How large a channel is where it is read: the mean absolute value behind norm and activation.

    Args:
        batches: As for :class:`Arriving`.
        batch_size: Likewise.

    References:
        Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, section
        2.2, "Activation".

    Example:
        >>> from lit_prune import plan_pruning
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 1))
        >>> images = torch.rand(8, 3, 12, 12)
        >>> plan_pruning(net, images, amount=0.5, criterion="activation", data=[images]).kept["0.weight"][0].shape
        torch.Size([8])
    """

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor | None:
        return self._mean(evidence, group, "size")


class NonzeroActivation(Arriving):
    """How often a channel is not zero where it is read: one minus the average percentage of zeros (APoZ).

    A layer whose channels are never zero (behind SiLU or GELU) can't be judged, and stays.

    Args:
        batches: As for :class:`Arriving`.
        batch_size: Likewise.

    References:
        Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", 2016,
        section 3.1.
    """

    needs = "an activation that makes zeros, such as ReLU, before the layers that read its channels"

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor | None:
        share = self._mean(evidence, group, "nonzero")
        return None if share is None or bool((share == 1).all()) else share


class OptimalBrainSurgeon(Arriving):
    """What is lost of the answers of the layers that read a channel, once all others make up for it as well as can be.

    For each reading layer with weights W and inputs of covariance H it is Σ W²/(H⁻¹)ⱼⱼ, over outputs and kernel
    positions, as a part of the variance of its answers, tr(WHWᵀ); summed over the layers. It goes well with a repair,
    which does make up for it.

    Args:
        batches: As for :class:`Arriving`.
        batch_size: Likewise.

    References:
        Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992, equation 5;
        Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 4, for structures.
    """

    needs_covariances = True
    comparable = True

    def _of(self, evidence: Evidence, group: ChannelGroup) -> Tensor | None:
        reading = self._reading(evidence, group)
        losses = [per_channel(group, slot, _losses(weight, arrivals)) for slot, weight, arrivals in reading]
        return torch.stack(losses).sum(0).float() if losses else None


def _losses(weight: Tensor, arrivals: Arrivals) -> Tensor:
    """``(inputs,)`` the part of the variance of a layer's answers that goes with each of its inputs."""
    weight = weight.to("cpu", torch.float64)
    covariance = arrivals.covariance
    if covariance is None:
        # Of so many inputs each is taken as if it had nothing in common with others.
        squares = weight.movedim(arrivals.dim, 0).flatten(1).square().sum(1)
        parts = squares * arrivals.variance
        return parts / parts.sum().clamp(min=_TINY)
    groups, inputs = covariance.shape[:2]
    # (groups, inputs, outputs and kernel positions)
    rows = weight.reshape(groups, -1, *weight.shape[1:])
    rows = (rows.transpose(1, 2) if arrivals.dim else rows).flatten(2)
    variance = (rows * (covariance @ rows)).sum().clamp(min=_TINY)
    ridge = _RIDGE * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=_TINY)
    damped = covariance + ridge[:, None, None] * torch.eye(inputs, dtype=torch.float64)
    inverse: Tensor = torch.linalg.inv(damped).diagonal(dim1=1, dim2=2)
    lost: Tensor = rows.square().sum(2) / inverse / variance
    return lost.sum(0) if arrivals.dim else lost.flatten()
