"""Criteria that read what arrives, on calibration batches, at the layers behind a channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_prune.activations import Arrivals, Calibration
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.magnitude import per_channel
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.graph import ChannelGroup

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

    calibration: Calibration | None = Calibration()

    adds_up: bool = False
    """Whether a channel counts by the sum over all places where it is read; by default by the mean."""

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
        values = {}
        for name, arrivals in evidence.arrivals.items():
            value = self.values(evidence.parameters[name].detach(), arrivals)
            if not isinstance(value, Tensor) or value.shape != arrivals.size.shape:
                given = f"one of {[*value.shape]}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise ArgumentTypeError(
                    f"{type(self).__name__}.values must return a tensor of {[*arrivals.size.shape]} for {name}, one "
                    f"number an input, but returned {given}."
                )
            values[name] = arrivals.dim, value
        scores = {group.name: self._of(evidence, group, values) for group in evidence.groups}
        return {name: score.float() for name, score in scores.items() if score is not None}

    @abstractmethod
    def values(self, weight: Tensor, arrivals: Arrivals) -> Tensor:
        """``(inputs,)`` what each input of a layer counts.

        Args:
            weight: The layer's.
            arrivals: What is multiplied with it.
        """

    def _of(self, evidence: Evidence, group: ChannelGroup, values: Mapping[str, tuple[int, Tensor]]) -> Tensor | None:
        """``(size,)``; ``None`` where a channel is read nowhere."""
        total, places = torch.zeros(2, group.size, dtype=torch.float64)
        for slot, _ in evidence.readers_of(group):
            if slot[0] in values and values[slot[0]][0] == slot[1]:
                value = values[slot[0]][1]
                total += per_channel(group, slot, value)
                places += per_channel(group, slot, torch.ones_like(value))
        scores: Tensor = total if self.adds_up else total / places
        return scores if places.all() else None


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

    def values(self, weight: Tensor, arrivals: Arrivals) -> Tensor:
        """Mean absolute values."""
        return arrivals.size


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

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """As of any; groups without a zero are left out."""
        return {name: share for name, share in super().__call__(evidence).items() if not bool((share == 1).all())}

    def values(self, weight: Tensor, arrivals: Arrivals) -> Tensor:
        """Shares of values that are not zero."""
        return arrivals.nonzero


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
    adds_up = True

    def values(self, weight: Tensor, arrivals: Arrivals) -> Tensor:
        """Parts of the variance of the layer's answers."""
        weight = weight.to("cpu", torch.float64)
        if arrivals.covariance is None:
            # Of so many inputs each is taken as if it had nothing in common with others.
            parts = weight.movedim(arrivals.dim, 0).flatten(1).square().sum(1) * arrivals.variance
            return parts / parts.sum().clamp(min=_TINY)
        covariance, inputs = arrivals.covariance, arrivals.covariance.shape[1]
        # (groups, inputs, outputs and kernel positions)
        rows = weight.reshape(len(covariance), -1, *weight.shape[1:])
        rows = (rows.transpose(1, 2) if arrivals.dim else rows).flatten(2)
        variance = (rows * (covariance @ rows)).sum().clamp(min=_TINY)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        # What single precision has rounded off of the largest may be more than the penalty.
        rounded = torch.finfo(torch.float32).eps * inputs * diagonal.amax(1)
        ridge = (_RIDGE * diagonal.mean(1) + rounded).clamp(min=_TINY)
        damped = covariance + ridge[:, None, None] * torch.eye(inputs, dtype=torch.float64)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).diagonal(dim1=1, dim2=2)
        lost: Tensor = rows.square().sum(2) / inverse / variance
        return lost.sum(0) if arrivals.dim else lost.flatten()
