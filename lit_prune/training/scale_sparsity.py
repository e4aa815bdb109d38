"""Training towards few channels: the scales of BatchNorms that are not needed go to zero before a pruning."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_prune.common._compat import NormBase
from lit_prune.common.arguments import check_positive, check_whole
from lit_prune.training.lightning import gradient_scale


class ScaleSparsity(Callback):
    """Adds the subgradient of an L1 penalty on the scales of BatchNorms, beside the user's loss.

    Channels that matter little get a scale near zero, which `criterion="batchnorm"` then goes by. The loss that the
    training step returns and logs is not changed.

    Args:
        penalty: Weight of the sum of |γ| in the loss.
        until: The epoch, counted from 0, from which on there is no penalty any more: that of the last pruning, say;
            ``None`` is never.

    Raises:
        ArgumentError: If the penalty is not positive.

    References:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lit_prune import ChannelPruning
        >>> pruning = ChannelPruning(amount=0.5, epochs=[6], criterion="batchnorm", selection="global")
        >>> trainer = Trainer(callbacks=[ScaleSparsity(1e-4, until=6), pruning], logger=False, accelerator="cpu")
    """

    def __init__(self, penalty: float = 1e-4, until: int | None = None) -> None:
        super().__init__()
        check_positive("penalty", penalty)
        if until is not None:
            check_whole("until", until, least=0)
        self.penalty, self.until = penalty, until

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add to the gradients of the scales that this optimizer steps."""
        if self.until is not None and trainer.current_epoch >= self.until:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        added = self.penalty * gradient_scale(trainer, optimizer)
        for module in pl_module.modules():
            if isinstance(module, NormBase) and id(module.weight) in own and module.weight.grad is not None:
                module.weight.grad.add_(torch.sign(module.weight.detach()), alpha=added)
