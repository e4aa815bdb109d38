"""How much of a layer goes by one criterion, which of its channels by another."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_prune.activations import Calibration
from lit_prune.common.choices import resolve
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.known import CRITERIA
from lit_prune.criteria.scores import checked_scores
from lit_prune.errors import ArgumentError


class Combined(Criterion):
    """The scores of one criterion, handed out within each layer in the order of another.

    What says how layers compare need not be what says which channels of a layer can be spared. ``Combined("lamp",
    "obs")`` with a global budget, repaired, is the best that needs no gradients for the detectors measured in
    docs/accuracy.md.

    Args:
        layers: Its scores count: how much of each layer goes. An instance or a name, as for ``ChannelPruning``.
        channels: Its order counts: which channels of a layer go first.

    Raises:
        ArgumentError: If a name is unknown, or one goes by classes of objects and the other by what arrives at layers.
        ArgumentTypeError: If one is no criterion.

    Example:
        >>> from lit_prune import ChannelPruning
        >>> from lit_prune.select import MacsBudget
        >>> criterion = Combined(layers="lamp", channels="obs")
        >>> pruning = ChannelPruning(0.5, epochs=[6], criterion=criterion, selection=MacsBudget("global"), repair=True)
    """

    def __init__(self, layers: Criterion | str, channels: Criterion | str) -> None:
        self.layers = resolve("layers", layers, Criterion, CRITERIA)
        self.channels = resolve("channels", channels, Criterion, CRITERIA)
        self.comparable = self.layers.comparable
        self.is_layer_adaptive = self.layers.is_layer_adaptive
        both = self.layers, self.channels
        looking = [each for each in both if each.calibration is not None]
        if len({each.needs_arrivals for each in looking}) > 1:
            raise ArgumentError(
                f"{' and '.join(type(each).__name__ for each in both)} can't be combined: one goes by what arrives at "
                "layers, the other by activations of objects, and data is looked at for one of the two."
            )
        self.calibration = _larger([each.calibration for each in looking if each.calibration is not None])
        self.needs_arrivals = any(each.needs_arrivals for each in both)
        self.needs_covariances = any(each.needs_covariances for each in both)
        self.needs_gradients = any(each.needs_gradients for each in both)
        self.needs = ", and ".join(dict.fromkeys(each.needs for each in both if each.needs))

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score the channels of the groups that both can judge.

        Raises:
            LitPruneError: As one of them does.
        """
        amounts, orders = checked_scores(self.layers, evidence), checked_scores(self.channels, evidence)
        return {
            group.name: _handed_out(amounts[group.name], orders[group.name])
            for group in evidence.groups
            if group.name in amounts and group.name in orders
        }


def _handed_out(values: Tensor, order: Tensor) -> Tensor:
    """The values, sorted as another score has the channels."""
    return torch.empty_like(values).scatter_(0, order.argsort(stable=True).to(values.device), values.sort().values)


def _larger(calibrations: list[Calibration]) -> Calibration | None:
    return max(calibrations, key=lambda each: each.batches * each.batch_size, default=None)
