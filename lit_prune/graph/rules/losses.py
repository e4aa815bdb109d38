"""Losses: one number of all that enters."""

from __future__ import annotations

from lit_prune.graph.rules.elementwise import broadcast
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer

_NONE = 0


@register_rule(
    *"mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits kl_div poisson_nll_loss".split()
)
def _loss(trace: Tracer, op: Operation) -> None:
    if op["reduction"] == _NONE:
        broadcast(trace, op)
    else:
        _enters(trace, op)


@register_rule(
    *"nll_loss nll_loss_forward nll_loss2d nll_loss2d_forward nll_loss_nd multi_margin_loss "
    "multilabel_margin_loss_forward ctc_loss cudnn_ctc_loss trace".split()
)
def _enters(trace: Tracer, op: Operation) -> None:
    trace.freeze_inputs(op, f"enters {op.name.removesuffix('_forward')}")
