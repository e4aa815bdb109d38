"""Criteria that read the gradients of training steps."""

from __future__ import annotations

from torch import Tensor

from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.errors import ArgumentError


class Taylor(Criterion):
    """How much the loss would change without a channel, to first order: root mean square over training steps.

    Scores of different layers are in the unit of the loss, so `"global"` finds layers that hardly matter. Gradients are
    those of the training itself, looked at before optimizers step; no extra pass is made. An event that comes before
    the first step waits for it.

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.

    Example:
        >>> from lit_prune import ChannelPruning
        >>> from lit_prune.select import MacsBudget
        >>> pruning = ChannelPruning(0.5, epochs=[6, 8, 10], criterion="taylor", selection=MacsBudget("global"))
    """

    needs_gradients = True
    comparable = True
    needs = "a gradient, of the weights that read its channels"

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score each channel by what the loss would change by.

        Raises:
            ArgumentError: If there are no gradients.
        """
        if not evidence.changes:
            raise ArgumentError(
                f"{type(self).__name__} goes by gradients, and there are none here. Under a Trainer they are those "
                "of training steps; elsewhere write plan_pruning(..., losses=(loss_of(batch) for batch in batches))."
            )
        return {group.name: evidence.changes[group.name] for group in evidence.groups if group.name in evidence.changes}


class Fisher(Taylor):
    """What the loss would change by without a channel, squared, for each multiply-add that its removal saves.

    The mean square of the first-order change over training steps is the diagonal of the Fisher information of a gate
    on the channel, over all layers that are coupled. Divided by the saving, it takes first what is cheap to lose and
    dear to keep: best with ``Global(normalization=0)`` for removals of up to a half.

    References:
        Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021, sections 3.1 and 3.3.

    Example:
        >>> from lit_prune import ChannelPruning
        >>> from lit_prune.select import Global, MacsBudget
        >>> pruning = ChannelPruning(0.4, epochs=[6], criterion="fisher", selection=MacsBudget(Global(normalization=0)))
    """

    def __call__(self, evidence: Evidence) -> dict[str, Tensor]:
        """Score each channel by the square of what the loss would change by, a multiply-add.

        Raises:
            ArgumentError: If there are no gradients.
        """
        whole = evidence.graph.macs_without({})
        return {
            name: score.square() / max(1, whole - evidence.graph.macs_without({name: [0]}))
            for name, score in super().__call__(evidence).items()
        }
