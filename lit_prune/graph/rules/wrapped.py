"""Weights that a forward computes from others: their norms, and what a quantiser makes of them."""

from __future__ import annotations

from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer


@register_rule("weight_norm_interface")
def _weight_norm(trace: Tracer, op: Operation) -> None:
    # Each slice along `dim` has a norm of its own; to the norm of a slice zeros add nothing.
    direction, dim = op["v"], op["dim"] % op["v"].dim()
    own = trace.row(direction, dim)
    if own is not None:
        trace.vanishing.divide(direction, [own])
        trace.unite([own, trace.row(op["g"], dim)], "is scaled by what is not tracked")
    others = [row for other, row in enumerate(trace.rows(direction)) if other != dim]
    if not trace.vanishing.rely([direction], others, trace.layer):
        trace.freeze(others, "is normalised over")
    trace.assign_blocks(op.outputs()[0], trace.blocks(direction))


@register_rule("dot", "vdot")
def _scalar_product(trace: Tracer, op: Operation) -> None:
    first, second = op.tensors()
    if not all(map(trace.vanishing.is_weight, (first, second))):
        # A number of the whole network: a loss.
        trace.freeze_inputs(op, f"enters {op.name}")
    elif len(first) > 1:
        row = trace.unite([trace.row(first, 0), trace.row(second, 0)], "is contracted with what is not tracked")
        trace.vanishing.rely([first, second], [row], trace.layer)
