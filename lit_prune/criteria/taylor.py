"""The criterion that reads the gradients of training steps."""

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
                "Taylor goes by gradients, and there are none here. Under a Trainer they are those of training steps; "
                "elsewhere write plan_pruning(..., losses=(loss_of(batch) for batch in batches))."
            )
        return {group.name: evidence.changes[group.name] for group in evidence.groups if group.name in evidence.changes}
